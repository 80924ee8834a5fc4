"""Our checkpoints to folders that stock diffusers loads."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dollar_jax import diffusion
from dollar_jax.card import COMPONENTS, SAMPLED, Card, require
from dollar_jax.checkpoint import open_component, read_card, root
from dollar_jax.convert import families
from dollar_jax.convert.architectures import by_network, describe
from dollar_jax.convert.families.family import Architecture, Family, OriginalKeys
from dollar_jax.convert.tables import restore_lazily
from dollar_jax.convert.tensors import write_folder
from dollar_jax.data.text import copy_tokenizer
from dollar_jax.errors import UserError
from dollar_jax.files import new_folder, require_space
from dollar_jax.reading import inside, read_json

SCHEDULER_FILE = Path(__file__).with_name("dollar_scheduler.py")


def to_torch(source: Path, target: Path, item: str = "", original: bool = False) -> None:
    """Writes the model in `source` as a diffusers pipeline folder, or a network without one as a model folder.

    One parameter, with blocks stacked, and one file of the target (2 GB; with `original` all) are in memory at a time.

    Args:
      source: a model's folder, or one numbered checkpoint in it.
      item: the weights of a training stage to write: student, ema, params or fake_score; by default those that the card
        names.
      original: write the transformer alone, one file in the names of its authors' code.
    Raises:
      UserError: there is no such model, or diffusers has no such network; then nothing is written.
    """
    card = read_card(source)
    own = card["role"] if card["role"] in card else "transformer"
    if item:
        card[own] = card[own] | {"item": item}
    require(card, (own,), source)
    if original:
        _original(source, card[own], target)
        return
    if own != "transformer" or "vae" not in card:
        with new_folder(target) as folder:
            _component(source, card[own], by_network(card[own]["architecture"]), [folder])
        return
    require(card, SAMPLED, source)
    family = _family(card)
    with new_folder(target) as folder:
        index = {"_class_name": family.pipeline}
        for name in COMPONENTS:
            folders = family.folders if name == "transformer" else (name,)
            index |= _component(source, card[name], family.component(name), [folder / name for name in folders])
        copy_tokenizer(inside(root(source), card["tokenizer"]["path"]), folder / "tokenizer")
        index["tokenizer"] = ["transformers", _tokenizer_class(folder / "tokenizer")]
        stock = family.write_scheduler(card)
        index["scheduler"] = _scheduler(*(stock or own_scheduler(card)), folder / "scheduler", own=not stock)
        _write_json(folder / "model_index.json", index | family.index(card))
        (folder / "README.md").write_text(_readme(family, card, target, own_scheduler=not stock))


def _original(source: Path, part: Card, target: Path) -> None:
    """Writes the folder `target` with one network, in one file with the names of its authors' code."""
    keys = by_network(part["architecture"]).keys
    if not isinstance(keys, OriginalKeys):
        raise UserError(f"{part['architecture']}: its authors' code has no other names, leave out --original")
    with new_folder(target) as folder:
        params = open_component(source, part)
        require_space(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
        tensors = restore_lazily(keys.original_table(part["config"]), params)
        write_folder(folder, "model", tensors, shard_bytes=sum(value.nbytes for value in tensors.values()))


def _family(card: Card) -> Family:
    """The family whose pipeline has all networks of the card."""
    family = families.by_transformer(card["transformer"]["architecture"])
    for name in COMPONENTS:
        network, wanted = card[name]["architecture"], family.component(name).network
        if network != wanted:
            raise UserError(f"{name} is {network}: a {family.pipeline} of another library has {wanted}")
    return family


def _component(source: Path, part: Card, architecture: Architecture, folders: list[Path]) -> dict[str, list[str]]:
    """Writes one network, in several folders if it has several there; returns their entries of model_index.json."""
    description = describe(architecture, part)
    params = open_component(source, part)
    require_space(folders[0].parent, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    print(f"{architecture.component}: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    tensors = restore_lazily(architecture.keys.table(part["config"]), params)
    for folder in folders:
        prefix = f"{folder.name}." if len(folders) > 1 else ""
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        folder.mkdir(exist_ok=True)
        write_folder(folder, architecture.stem, own)
        _write_json(folder / "config.json", description)
    return {folder.name: [architecture.library, architecture.class_name] for folder in folders}


def own_scheduler(card: Card) -> tuple[str, dict[str, Any]]:
    """(class, content of scheduler_config.json) of the scheduler in `dollar_scheduler.py`, which samples as any card
    says: stock ones know neither conjugate velocity, nor times of one's own, nor samplers that draw new noise.
    """
    times, schedule = sorted(card["times"], reverse=True), diffusion.make_schedule(**card["schedule"])
    exact = jnp.asarray(times, jnp.float32)
    signal, noise = schedule.at(exact)
    cut = schedule.network_times(exact)
    return "DollarScheduler", {
        "times": times if cut is exact else cut.astype(int).tolist(),  # what the network gets, in double precision
        "signal": signal.ravel().tolist(),
        "noise": noise.ravel().tolist(),
        "prediction_type": card["prediction_type"],
        "sampler": card["sampler"],
    }


def _scheduler(name: str, config: dict[str, Any], folder: Path, own: bool) -> list[str]:
    """Writes the scheduler and returns its entry of model_index.json: our own is a module in the folder."""
    _write_json(folder / "scheduler_config.json", {"_class_name": name} | config)
    if not own:
        return ["diffusers", name]
    shutil.copy(SCHEDULER_FILE, folder)
    return [SCHEDULER_FILE.stem, name]


def _tokenizer_class(folder: Path) -> str:
    name = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    # The pipeline's index names the class that transformers imports.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w{0,80}", name):
        raise UserError(f"the tokenizer is a {name!r}, which is no class of transformers")
    return name


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _readme(family: Family, card: Card, target: Path, own_scheduler: bool) -> str:
    """How to sample from the folder."""
    trust = ", trust_remote_code=True" if own_scheduler else ""
    load = [f"pipe = {family.pipeline}.from_pretrained({json.dumps(target.name)}, torch_dtype=torch.bfloat16{trust})"]
    call = ", ".join(["prompt", *(f"{name}={value!r}" for name, value in family.call(card).items())])
    imports = ["import torch", f"from diffusers import {family.pipeline}", ""]
    sample = [f"video = pipe({call}).frames[0]"]
    if chunk := card["video"]["independent_chunk"]:
        latents = card["latent_shape"][0] * chunk // card["video"]["frames"]
        imports += ["torch.set_grad_enabled(False)", ""]
        sample = [
            f'latents = pipe({call}, output_type="latent").frames',
            f"latents = {family.unscaled}",
            f"parts = [pipe.vae.decode(part).sample[:, :, 1:] for part in latents.split({latents}, dim=2)]",
            "video = pipe.video_processor.postprocess_video(torch.cat(parts, dim=2))[0]",
        ]
    origin = []
    if place := card.get("hub"):
        page = f"https://huggingface.co/{place['repository']}/tree/{place['commit']}"
        origin = [f"From [{place['repository']}]({page}), commit `{place['commit']}`.", ""]
    schedule, times = card["schedule"], sorted(card["times"], reverse=True)
    steps = f"{len(times)} steps, guidance scale {card['guidance'] + 1:g}"
    if schedule["kind"] == "flow":
        # A student's own levels; a teacher's are too many to list.
        levels = [f"{time / schedule.get('steps', 1000):.4g}" for time in times if card["role"] == "student"]
        steps += f", shift {schedule.get('shift', 1.0):g}"
        steps += f", sigma {', '.join(levels)}" if levels else ""
    lines = [
        f"# A {card['role']} of dollar_jax",
        "",
        f"{steps}.",
        "",
        *origin,
        "```python",
        *imports,
        *load,
        *sample,
        "```",
        "",
    ]
    if own_scheduler:
        lines += [f"`scheduler/{SCHEDULER_FILE.name}` is run by this: read it first, it is short.", ""]
    return "\n".join(lines)
