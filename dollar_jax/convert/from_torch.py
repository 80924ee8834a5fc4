"""PyTorch folders and files, here or on the Hugging Face hub, to our checkpoints. They may be strangers': nothing in
them runs or leads out of them.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dollar_jax.card import COMPONENTS, Card
from dollar_jax.checkpoint import network_of, save_params, write_card
from dollar_jax.convert import aesthetic, clip, families, hub, import_lora, wan_dit
from dollar_jax.convert.architectures import CLIP, SIZES, describing, of_folder, plain, word
from dollar_jax.convert.families.family import Architecture, Family
from dollar_jax.convert.import_lora import Lora
from dollar_jax.convert.tables import Rule, convert_lazily
from dollar_jax.convert.tensors import Tensors, joined, open_file, open_folder
from dollar_jax.data.text import copy_tokenizer
from dollar_jax.errors import UserError
from dollar_jax.files import new_folder, require_space
from dollar_jax.models.network import parameter_shapes
from dollar_jax.reading import inside, read_json, require_schema, within

WAN = "head.head.weight"  # in every Wan with the names of its authors


def from_torch(source: str | os.PathLike, target: Path, revision: str = "", lora: str | os.PathLike = "") -> Card:
    """Converts a folder or a file to the checkpoint `target` and returns its card.

    Tensors keep their dtype; one parameter, with blocks stacked, is in memory at a time. A LoRA beside the weights of a
    transformer is merged into them.

    Args:
      source: a diffusers pipeline folder, a model folder of diffusers or transformers, or a file of open_clip, of
        LAION's aesthetic predictors or of Wan's authors. If there is no such path: the id of a folder on the Hugging
        Face hub.
      revision: its branch, tag or commit there; '' is main.
      lora: a LoRA from elsewhere to be merged, a file or a folder here; '' for none.
    Raises:
      UserError: the source cannot be downloaded or read, or does not fit a network; then nothing is written.
    """
    if lora and not Path(lora).exists():
        raise UserError(f"--lora={lora} does not exist: name a file of safetensors, or a folder with one")
    with new_folder(target) as folder:
        place, origin = _place(source, revision)
        if place.is_file():
            card = _file(place, folder, lora)
        elif (place / "model_index.json").exists():
            card = _pipeline(place, folder, lora)
        else:
            card = _model(place, folder, lora)
        card |= origin
        write_card(folder, card)
    return card


def _place(source: str | os.PathLike, revision: str) -> tuple[Path, Card]:
    """The source on this machine, downloaded if need be, and the field of a card that says where it comes from."""
    place = Path(source)
    if place.exists():
        if revision:
            raise UserError(f"--revision is for a repository of the Hugging Face hub: {source} is here already")
        return place, {}
    repository = hub.require_repository(source)
    place, commit = hub.download(repository, revision or "main", hub.DESCRIPTIONS)
    print(f"{repository}: commit {commit}", flush=True)
    # What cannot be converted is refused before gigabytes of weights come.
    if (place / "model_index.json").exists():
        _family(place)
    elif (place / "config.json").exists():
        of_folder(place)
    elif (place / import_lora.PEFT).exists():
        raise UserError(
            f"{repository} is a LoRA alone: name the model that it changes, and with --lora a folder of this one here"
            f" (hf download {repository} --local-dir DIR)"
        )
    else:
        raise UserError(
            f"{repository} has neither model_index.json nor config.json, so it is no folder of diffusers or"
            " transformers: to convert a file in it, download that file and name it"
        )
    hub.download(repository, commit, (*hub.DESCRIPTIONS, *hub.WEIGHTS))
    if not any(place.rglob("*.safetensors")):
        raise UserError(
            f"{repository} has no weights in safetensors, and pickles are not downloaded from the hub: if you trust it,"
            f" download its folder and name that (hf download {repository} --local-dir DIR)"
        )
    return place, {"hub": {"repository": repository, "commit": commit}}


def _family(source: Path) -> tuple[Family, dict[str, Any]]:
    """The family of a pipeline folder, and its model_index.json."""
    index = read_json(within(source, "model_index.json"))
    kind = index.get("_class_name")
    family = families.by_pipeline(index)
    if family is None:
        known = ", ".join(sorted({family.pipeline for family in families.FAMILIES}))
        raise UserError(
            f"{source} holds a {word(kind)}, which is neither sampled nor distilled here (known: {known}); to convert"
            " its networks alone name their folders"
        )
    return family, index


def _pipeline(source: Path, folder: Path, lora: str | os.PathLike) -> Card:
    """Converts a pipeline folder and returns the card of a teacher."""
    family, index = _family(source)
    parts = (*COMPONENTS, *family.folders, "tokenizer", "scheduler")
    more = {name: value for name, value in index.items() if not name.startswith("_") and name not in parts}
    loras = import_lora.find(source, lora, family.folders)
    path = within(source, "scheduler/scheduler_config.json")
    scheduler = read_json(path)
    require_schema(scheduler, SIZES, path, "no such scheduler can be converted")
    card: Card = {"role": "teacher", **family.read_scheduler(scheduler)}
    card |= {"guidance": family.guidance, "negative_prompt": family.negative_prompt}
    for name in COMPONENTS:
        if name == "transformer" and len(family.folders) > 1:
            card[name] = _experts(source, family, index, folder, loras)
            continue
        part, architecture = _component(source, name, folder, loras.get(name))
        if architecture != (wanted := family.component(name)):
            holds = architecture.class_name
            raise UserError(
                f"{source / name} holds a {holds}: the {name} of a {family.pipeline} is a {wanted.class_name}"
            )
        card[name] = part
    if not (source / "tokenizer").is_dir():
        raise UserError(f"{source}/tokenizer is missing")
    copy_tokenizer(inside(source, "tokenizer"), folder / "tokenizer")
    with describing(source / "transformer" / "config.json"):
        card["tokenizer"] = {"path": "tokenizer", "length": family.text_length(card)}
        card["tokenizer"] |= {"clean": True} if family.clean else {}
        card = family.at_own_size(card)
    if family.low_guidance is not None:
        card["low_guidance"] = {"guidance": family.low_guidance, "below": card["transformer"]["config"]["boundary"]}
    known = family.index(card)
    for name, value in more.items():
        if value not in (None, [None, None], known.get(name)):
            raise UserError(f"{source}/model_index.json has {word(name)} = {value!r:.100}, which is not supported")
    return card | _merged(loras.values())


def _model(source: Path, folder: Path, lora: str | os.PathLike) -> Card:
    """Converts a model folder and returns its card."""
    if not (source / "config.json").exists() and import_lora.beside(source, ""):
        raise UserError(f"{source} is a LoRA alone: convert the model that it changes, with --lora={source}")
    loras = import_lora.find(source, lora, [""])
    part, architecture = _component(source, "", folder, loras.get(""))
    return {"role": architecture.component, architecture.component: part} | _merged(loras.values())


def _merged(loras: Iterable[Lora]) -> Card:
    return {"merged": origins} if (origins := [lora.origin for lora in loras]) else {}


def _experts(source: Path, family: Family, index: Mapping[str, Any], folder: Path, loras: Mapping[str, Lora]) -> Card:
    """Converts the transformers of a pipeline with several, to one network with all of them: its part of a card."""
    architecture, described = family.component("transformer"), {}
    for name in family.folders:
        if not (source / name).is_dir():
            raise UserError(f"{source}/{name} is missing: this {family.pipeline} has an expert for low noise there")
        holds, described[name] = of_folder(source, name)
        if holds.class_name != architecture.class_name:
            raise UserError(f"{source / name} holds a {holds.class_name}, not a {architecture.class_name}")
    with describing(source / "transformer" / "config.json"):
        configs = [architecture.keys.config(theirs) for theirs in described.values()]
        if any(config != configs[0] for config in configs):
            raise UserError(f"{source}: {' and '.join(family.folders)} have other sizes")
        config = configs[0] | family.beside(index)
        table = architecture.keys.table(config)
    parts = {}
    for name in family.folders:
        names = import_lora.tables(architecture.keys, config, name)
        parts[name] = import_lora.merged(open_folder(source, name), loras.get(name), names)
    tensors = joined(parts)
    part = _save(source, folder, "transformer", architecture.network, config, table, tensors)
    return part | {"source": plain(described["transformer"])}


def _component(source: Path, name: str, folder: Path, lora: Lora | None) -> tuple[Card, Architecture]:
    """Converts the model folder `source/name` into `folder`: its part of a card, and its architecture."""
    place = source / name
    architecture, theirs = of_folder(source, name)
    keys = architecture.keys
    other = lora.path if lora else next(iter(import_lora.beside(source, name)), None)
    if other and architecture.component != "transformer":
        raise UserError(f"{other} is a LoRA of a {architecture.component}: only one of a transformer can be merged")
    with describing(place / "config.json"):
        config = keys.config(theirs)
        scale = keys.scale(theirs) if architecture.component == "vae" else {}
        table = keys.table(config)
    tensors = open_folder(source, name)
    tensors = import_lora.merged(tensors, lora, import_lora.tables(keys, config))
    if architecture == CLIP:
        tensors = tensors.without(clip.IGNORED)
    part = _save(place, folder, architecture.component, architecture.network, config, table, tensors)
    return part | scale | {"source": plain(theirs)}, architecture


def _file(source: Path, folder: Path, lora: str | os.PathLike) -> Card:
    """Converts a file without a config, known by its tensors: a CLIP of open_clip, an aesthetic predictor, or a Wan in
    the names of its authors' code.
    """
    tensors = open_file(source)
    plain_names = wan_dit.without_prefix(tensors)
    if lora and WAN not in plain_names:
        raise UserError(f"--lora={lora} is for a transformer: {source} holds none")
    if "visual.conv1.weight" in tensors:
        with describing(source):
            config = clip.open_clip_config(tensors.shapes)
            table, split = clip.open_clip_table(config), clip.split_fused(tensors)
        return {"role": "clip", "clip": _save(source, folder, "clip", "clip", config, table, split)}
    if WAN in plain_names:
        with describing(source):
            config = wan_dit.original_config(plain_names.shapes)
            table = wan_dit.original_table(config)
        loras = import_lora.find(None, lora, [""])
        plain_names = import_lora.merged(plain_names, loras.get(""), import_lora.tables(wan_dit, config), own=1)
        part = _save(source, folder, "transformer", "wan_dit", config, table, plain_names)
        return {"role": "transformer", "transformer": part} | _merged(loras.values())
    if tensors.keys() <= {"weight", "bias"} or "layers.0.weight" in tensors:
        with describing(source):
            config = aesthetic.config(tensors.shapes)
            table = aesthetic.table(config)
        part = _save(source, folder, "aesthetic", "aesthetic", config, table, tensors)
        return {"role": "aesthetic", "aesthetic": part}
    raise UserError(f"{source} holds no open_clip model, no aesthetic predictor and no Wan; folders have a config.json")


def _save(
    source: Path,
    folder: Path,
    component: str,
    network: str,
    config: Mapping[str, Any],
    table: list[Rule],
    tensors: Tensors,
) -> Card:
    """Converts and writes one network, and returns its part of a card."""
    require_space(folder, tensors.nbytes)
    print(f"{component}: {len(tensors)} tensors, {tensors.nbytes / 1e6:,.1f} MB", flush=True)
    with describing(source):
        target = parameter_shapes(network_of({"architecture": network, "config": config}))
        params = convert_lazily(table, tensors.lazy, target)
    save_params(folder / component, params)
    return {"architecture": network, "config": dict(config), "path": component, "item": ""}
