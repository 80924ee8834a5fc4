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
from dollar_jax.checkpoint import read_card, root
from dollar_jax.convert import families, readme
from dollar_jax.convert.architectures import by_network, describe
from dollar_jax.convert.export_lora import write_lora
from dollar_jax.convert.families.family import Architecture, Family, OriginalKeys
from dollar_jax.convert.merging import open_merged
from dollar_jax.convert.tables import restore_lazily
from dollar_jax.convert.tensors import parted, write_file, write_folder
from dollar_jax.data.text import copy_tokenizer
from dollar_jax.errors import UserError
from dollar_jax.files import new_folder, require_space
from dollar_jax.models.flow_map import is_flow_map
from dollar_jax.reading import inside, read_json

SCHEDULER_FILE = Path(__file__).with_name(f"{readme.SCHEDULER}.py")


def to_torch(source: Path, target: Path, item: str = "", original: bool = False, merge: bool = False) -> None:
    """Writes the model in `source` as a diffusers pipeline folder, or a network without one as a model folder.

    Of a student whose transformer is an adapter, only that is written: a LoRA for the pipeline of its base.

    One parameter, with blocks stacked, and one file of the target (2 GB; with `original` all) are in memory at a time.

    Args:
      source: a model's folder, or one numbered checkpoint in it.
      item: the weights of a training stage to write: student, ema, params or fake_score; by default those that the card
        names.
      original: write the transformer alone, one file in the names of its authors' code.
      merge: write the whole pipeline of a student whose transformer is an adapter, with the adapter in the weights.
    Raises:
      UserError: there is no such model, or diffusers has no such network; then nothing is written.
    """
    card = read_card(source)
    own = card["role"] if card["role"] in card else "transformer"
    if item:
        card[own] = card[own] | {"item": item}
    require(card, (own,), source)
    if merge and "lora" not in card[own]:
        raise UserError(f"{source} has no adapter to merge: leave out --merge")
    if "lora" in card[own] and not merge:
        if original:
            raise UserError(f"{source} is an adapter: --original needs --merge; without both, a LoRA is written")
        _adapter(source, card, target)
        return
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
        index["scheduler"] = _scheduler(card, stock, folder / "scheduler")
        _write_json(folder / "model_index.json", index | family.index(card))
        (folder / "README.md").write_text(readme.of_pipeline(family, card, target.name, own=not stock))


def _adapter(source: Path, card: Card, target: Path) -> None:
    """Writes the folder `target` with the adapter of a student as a LoRA, the scheduler and a README."""
    require(card, SAMPLED, source)
    family = families.by_transformer(card["transformer"]["architecture"])
    with new_folder(target) as folder:
        write_lora(source, card["transformer"], family.folders, folder)
        stock = family.write_scheduler(card)
        name = _scheduler(card, stock, folder / "scheduler")[1]
        (folder / "README.md").write_text(readme.of_lora(family, card, target.name, name, own=not stock))


def _original(source: Path, part: Card, target: Path) -> None:
    """Writes the folder `target` with one network in its authors' names: `model`, or a file for each expert."""
    keys = by_network(part["architecture"]).keys
    if not isinstance(keys, OriginalKeys):
        raise UserError(f"{part['architecture']}: its authors' code has no other names, leave out --original")
    with new_folder(target) as folder:
        params = open_merged(source, part)
        require_space(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
        networks = families.by_transformer(part["architecture"]).folders
        tensors = parted(restore_lazily(keys.original_table(part["config"]), params), networks)
        for network, own in tensors.items():
            write_file(folder / f"{network if len(networks) > 1 else 'model'}.safetensors", own)


def _family(card: Card) -> Family:
    """The family whose pipeline has all networks of the card.

    Raises:
      UserError: no pipeline has them, or none samples a flow map of them.
    """
    family = families.by_transformer(card["transformer"]["architecture"])
    if is_flow_map(card["transformer"]["config"]):
        if family.flow_map is None:
            raise UserError(f"{family.pipeline} samples no flow map, and no other pipeline of diffusers does")
        family = family.flow_map
    for name in COMPONENTS:
        network, wanted = card[name]["architecture"], family.component(name).network
        if network != wanted:
            raise UserError(f"{name} is {network}: a {family.pipeline} of another library has {wanted}")
    return family


def _component(source: Path, part: Card, architecture: Architecture, folders: list[Path]) -> dict[str, list[str]]:
    """Writes one network, in several folders if it has several there; returns their entries of model_index.json."""
    description = describe(architecture, part)
    params = open_merged(source, part)
    require_space(folders[0].parent, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    print(f"{architecture.component}: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    tensors = restore_lazily(architecture.keys.table(part["config"]), params)
    own = parted(tensors, [folder.name for folder in folders])
    for folder in folders:
        folder.mkdir(exist_ok=True)
        write_folder(folder, architecture.stem, own[folder.name])
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


def _scheduler(card: Card, stock: tuple[str, dict[str, Any]] | None, folder: Path) -> list[str]:
    """Writes the scheduler, ours with its module if there is no stock one; returns its entry of model_index.json."""
    name, config = stock or own_scheduler(card)
    _write_json(folder / "scheduler_config.json", {"_class_name": name} | config)
    if stock:
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
