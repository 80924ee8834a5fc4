"""A student's config, and its card, which says what it shares with its teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dollar_jax import diffusion
from dollar_jax.card import Card
from dollar_jax.checkpoint import NUMBERED, SHARED, bring, digest, read_card
from dollar_jax.config import set_named
from dollar_jax.errors import UserError
from dollar_jax.models.flow_map import is_flow_map, told_of_targets
from dollar_jax.objectives import used
from dollar_jax.pipeline import at_size


def teacher_folder(config: ConfigDict, workdir: Path) -> Path:
    """Folder of the teacher: `config.teacher.path`, or the teacher that this run trains.

    Raises:
      UserError: the config has neither.
    """
    if not config.teacher.path and "teacher" not in config.stages:
        raise UserError("there is no teacher: set --config.teacher.path=FOLDER, or add the stage teacher")
    return Path(config.teacher.path) if config.teacher.path else workdir / "teacher"


def student_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config with a student's changes of `generator`, `fake_score`, `reward` and `lora`.

    `reward.batch_size`, the captions that the latent reward model learns from, is at most the generator's batch size.
    """
    config = config.copy_and_resolve_references()
    for free in (config.reward.options, config.reward.network):
        free.unlock()  # each reward has its own fields here; elsewhere a new field is a mistake
    for part in ("generator", "fake_score", "reward", "lora"):
        changes = dict(config.students[name].get(part, {}))
        set_named(config.generator.objectives, changes.pop("objectives", {}))
        config[part].update(changes)
    config.reward.batch_size = min(config.reward.batch_size, config.generator.batch_size)
    return config


def student_schedule(config: ConfigDict, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a student's schedule: the teacher's, with the changes in `config.generator.schedule`, if any.

    Raises:
      UserError: the teacher's kind of schedule has no such field.
    """
    fields = {**teacher, **config.generator.get("schedule", ConfigDict()).to_dict()}
    try:
        diffusion.make_schedule(**fields)
    except TypeError as error:
        raise UserError(f"generator.schedule does not fit the teacher's, which is {dict(teacher)}: {error}") from error
    return fields


def student_card(config: ConfigDict, teacher: Card, source: Path, folder: Path) -> Card:
    """The card of a student in `folder`, with the parts that it shares with its teacher brought there.

    Args:
      config: config of the student, see `student_config`.
      teacher, source: card and folder of its teacher.
    Raises:
      UserError: the teacher is an adapter or a flow map; the config does not fit its schedule; or the student in the
        folder was begun with another teacher or other adapters.
    """
    generator = config.generator
    if is_flow_map(teacher["transformer"]["config"]):
        raise UserError(f"{source} is a flow map, which cannot be a teacher: give the one that it was distilled from")
    adapters = _adapters(config.lora, source, teacher["transformer"])
    if (folder / "config.json").exists():
        begun = read_card(folder)
        _require_same_teacher(folder, begun, source, teacher)
        _require_same_adapters(folder, begun, source, adapters)
    shared = (*SHARED, "transformer") if adapters else SHARED
    card = at_size(teacher | bring(teacher, source, folder, shared), config.video.to_dict()) | {
        "role": "student",
        "objectives": {objective.name: objective.weight for objective in used(generator)},
        "transformer": teacher["transformer"] | {"path": NUMBERED, "item": "ema"} | adapters,
        "prediction_type": "x0" if generator.heterogeneous else teacher["prediction_type"],
        "schedule": student_schedule(config, teacher["schedule"]),
        "times": list(generator.times),
        "sampler": generator.sampler,
        "guidance": generator.guidance,
    }
    if generator.flow_map:
        card["transformer"] = flow_map_part(card["transformer"])
    card.pop("low_guidance", None)
    return card


def flow_map_part(transformer: Card) -> Card:
    """The part of a card for the flow map of this transformer."""
    return transformer | {"config": told_of_targets(transformer["config"])}


def require_same_form(folder: Path, theirs: Card, card: Card) -> None:
    """Raises UserError if the student in `folder` (its card) has parameters that mean something else than those of the
    student with the other card, which starts from it.
    """
    for (name, there), here in zip(_form(theirs).items(), _form(card).values(), strict=True):
        if there != here:
            raise UserError(
                f"start_from: the student in {folder} has {name} {there}, this one {here}: give both the same, or start"
                " from another student"
            )


def _form(card: Card) -> dict[str, Any]:
    """What the meaning of a student's parameters depends on, by the names of messages."""
    part = card["transformer"]
    adapter = part.get("lora", {})
    return {
        "prediction_type": card["prediction_type"],
        "flow_map": is_flow_map(part["config"]),
        "lora.rank": adapter.get("rank", 0),
        "lora.alpha": adapter.get("alpha", 0),
        "a base with the digest": adapter.get("sha256", ""),
    }


def _adapters(options: ConfigDict, source: Path, part: Card) -> Card:
    """The field `lora` of a student's transformer whose base is the teacher in `source`; {} for full weights.

    Raises:
      UserError: the teacher is an adapter itself.
    """
    if "lora" in part:
        raise UserError(
            f"{source} is an adapter on another network: merge it (convert to_torch --merge, then from_torch)"
        )
    if not options.rank:
        return {}
    fields = {"base": "transformer", "sha256": digest(source, part), "rank": options.rank, "alpha": options.alpha}
    return {"lora": fields}


def _require_same_adapters(folder: Path, card: Card, source: Path, adapters: Card) -> None:
    """Raises UserError if the student in `folder` (its card) was begun with another base, rank or alpha of adapters."""
    begun, now = card.get("transformer", {}).get("lora", {}), adapters.get("lora", {})
    if begun == now:
        return
    if begun.get("sha256") != now.get("sha256") and begun and now:
        raise UserError(f"{folder} was begun on another base than {source}: take that one, or another --workdir")
    known = [
        f"lora.rank={fields['rank']}, alpha={fields['alpha']:g}" if fields else "all weights" for fields in (begun, now)
    ]
    raise UserError(f"{folder} was begun with {known[0]}, not {known[1]}: give the same, or another --workdir")


def _require_same_teacher(folder: Path, known: Card, source: Path, card: Card) -> None:
    """Raises UserError if the student in `folder` (its card) was begun when its teacher was another commit on the hub,
    or was converted with another LoRA.
    """
    if known.get("merged", []) != card.get("merged", []):
        files = [", ".join(lora["file"] for lora in which.get("merged", [])) or "none" for which in (known, card)]
        raise UserError(
            f"{folder} was begun with a teacher that has another LoRA merged into it ({files[0]}) than {source}"
            f" ({files[1]}): take that teacher, or another --workdir"
        )
    begun, now = known.get("hub"), card.get("hub")
    if begun and now and begun != now:
        raise UserError(
            f"{folder} was begun with {begun['repository']} at commit {begun['commit']}, but {source} was converted"
            f" from {now['repository']} at {now['commit']}: convert the former again (--revision), or take another"
            " --workdir"
        )
