"""An adapter of ours as a LoRA: a file for diffusers, and one for ComfyUI where the authors' names are others."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dollar_jax.card import Card
from dollar_jax.checkpoint import open_component
from dollar_jax.convert.architectures import by_network, known
from dollar_jax.convert.families.family import OriginalKeys
from dollar_jax.convert.tables import Rule, linear, match, restore_lazily
from dollar_jax.convert.tensors import parted, write_file
from dollar_jax.errors import UserError
from dollar_jax.files import require_space
from dollar_jax.lazy import Lazy
from dollar_jax.models.linear import MATRICES
from dollar_jax.models.lora import factor

FILE = "pytorch_lora_weights.safetensors"  # where diffusers looks for it
COMFYUI = "comfyui"  # our folder for its files
DIFFUSERS_NAMES, ORIGINAL_NAMES = ("lora_A", "lora_B"), ("lora_down", "lora_up")


def place(network: str, networks: Sequence[str]) -> Path:
    """The file of diffusers for one network of a pipeline, in the exported folder."""
    return Path("" if network == networks[0] else network) / FILE


def write_lora(source: str | os.PathLike, part: Card, networks: Sequence[str], folder: Path) -> None:
    """Writes the adapter of a component as files in `folder`.

    The scale alpha / rank is multiplied into B, so that every reader, whatever it makes of an alpha, gets W + A B.

    Args:
      source: a model's folder, or one numbered checkpoint in it.
      part: a component with `lora` in its card.
      networks: its folders in a pipeline of diffusers; each gets files of its own.
    Raises:
      UserError: a layer cannot have a LoRA there, or the checkpoint cannot be read.
    """
    keys, config = by_network(part["architecture"]).keys, part["config"]
    adapter = _folded(flatten_dict(open_component(source, part), sep="/"), part["lora"]["alpha"])
    ranks = {matrix.shape[-1] for path, matrix in adapter.items() if path.endswith(MATRICES[0])}
    if len(ranks) > 1:
        raise UserError(f"{source}: layers have ranks of {', '.join(map(str, sorted(ranks)))}: use --merge")
    (rank,) = ranks
    require_space(folder, 2 * sum(matrix.nbytes for matrix in adapter.values()))
    layers = {path.rpartition("/")[0] for path in adapter}

    def written(table: Sequence[Rule], names: tuple[str, str]) -> dict[str, dict[str, Lazy]]:
        rules = lora_table(table, layers, names)
        return parted(restore_lazily(rules, unflatten_dict(adapter, sep="/")), networks)

    for network, tensors in written(keys.table(config), DIFFUSERS_NAMES).items():
        path = folder / place(network, networks)
        path.parent.mkdir(exist_ok=True)
        write_file(path, {f"transformer.{key}": x for key, x in tensors.items()}, _metadata(tensors, rank))
    if isinstance(keys, OriginalKeys):
        (folder / COMFYUI).mkdir()
        for network, tensors in written(keys.original_table(config), ORIGINAL_NAMES).items():
            # The loader of diffusers takes an alpha in blocks only. Without one, every reader takes the rank.
            blocks = dict.fromkeys(_module(key) for key in tensors if key.startswith("blocks."))
            alphas = {f"{module}.alpha": np.asarray(rank, np.float32) for module in blocks}
            named = {f"diffusion_model.{key}": x for key, x in (tensors | alphas).items()}
            write_file(folder / COMFYUI / f"{network}.safetensors", named)


def _folded(adapter: Mapping[str, Lazy], alpha: float) -> dict[str, Lazy]:
    """A and B s."""

    def folded(path: str, matrix: Lazy) -> Lazy:
        if not path.endswith(MATRICES[1]):
            return matrix
        scale = np.asarray(factor(alpha, matrix.shape[-2]), matrix.dtype)
        return matrix.through(lambda b: b * scale)

    return {path: folded(path, matrix) for path, matrix in adapter.items()}


def exportable(part: Card, layers: Sequence[str]) -> list[str]:
    """Linear layers of a component that can have a LoRA in the other library; all, if no other library has it."""
    tables = [one.keys.table(part["config"]) for one in known() if one.network == part["architecture"]]
    linears = {rule.ours.removesuffix("/kernel") for table in tables for rule in table if rule.change is linear}
    return [layer for layer in layers if layer in linears or not tables]


def lora_table(table: Sequence[Rule], layers: Collection[str], names: tuple[str, str]) -> list[Rule]:
    """The rules for the adapters of a network's linear layers, from the rules for its weights.

    Args:
      layers: paths of our layers with an adapter.
      names: the other library's for A and B.
    Raises:
      UserError: a layer is not linear there.
    """
    rules = [
        Rule(
            f"{rule.theirs.removesuffix('.weight')}.{theirs}.weight",
            f"{rule.ours.removesuffix('/kernel')}/{ours}",
            linear,
        )
        for rule in table
        if rule.change is linear
        for theirs, ours in zip(names, MATRICES, strict=True)
    ]
    for layer in sorted(layers):
        if all(match(rule.ours, f"{layer}/{MATRICES[0]}") is None for rule in rules):
            raise UserError(f"{layer} is no linear layer in the other library, where it can have no LoRA: use --merge")
    return rules


def _module(key: str) -> str:
    """NAME of NAME.lora_A.weight."""
    return key.rsplit(".", 2)[0]


def _metadata(tensors: Collection[str], rank: int) -> dict[str, str]:
    """What diffusers gives to peft's LoraConfig, whose older versions refuse newer fields."""
    fields = {"r": rank, "lora_alpha": rank, "target_modules": sorted({_module(key) for key in tensors})}
    named = {f"transformer.{name}": value for name, value in fields.items()}
    return {"lora_adapter_metadata": json.dumps(named, indent=2, sort_keys=True)}
