"""LoRAs of others, to be merged into the weights of a teacher. Their files are data of strangers.

diffusers  transformer.NAME.lora_A.weight and .lora_B.weight; alpha is in the file's metadata
ComfyUI    diffusion_model.NAME.lora_down.weight and .lora_up.weight, in the names of Wan's authors; alpha is
           NAME.alpha; NAME.diff, .diff_b and .diff_m are whole changes of a weight, a bias and a modulation
PEFT       base_model.model.NAME.lora_A.weight and .lora_B.weight; alpha is in adapter_config.json beside

Where no alpha is found it is the rank.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dollar_jax.card import Card
from dollar_jax.convert.export_lora import FILE
from dollar_jax.convert.families.family import Keys, OriginalKeys
from dollar_jax.convert.tables import Rule, match
from dollar_jax.convert.tensors import Tensors, open_file, read_metadata
from dollar_jax.errors import UserError
from dollar_jax.lazy import Lazy
from dollar_jax.reading import parse_json, read_json, require_schema, within

PEFT = "adapter_config.json"
PATTERNS = ("*lora*.safetensors", "*lora*.bin", PEFT)  # a LoRA beside weights
PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.", "")
# Ending of a key -> what it holds, and the ending of the weight that it changes.
ENDINGS = {
    "lora_A.weight": ("down", "weight"),
    "lora_down.weight": ("down", "weight"),
    "lora_B.weight": ("up", "weight"),
    "lora_up.weight": ("up", "weight"),
    "alpha": ("alpha", "weight"),
    "diff": ("diff", "weight"),
    "lora_B.bias": ("scaled", "bias"),
    "diff_b": ("diff", "bias"),
    "diff_m": ("diff", "modulation"),
}
OTHERS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT"}
_PATTERN = {"type": ["object", "null"], "propertyNames": {"pattern": r"^\^?[\w.-]{1,300}\Z"}}
_RANK = {"type": "integer", "minimum": 1, "maximum": 100_000}
_ALPHA = {"type": "number", "minimum": -1e6, "maximum": 1e6}
_CONFIG = {  # of peft's LoraConfig
    "required": ["r", "lora_alpha"],
    "properties": {
        "peft_type": {"const": "LORA"},
        "r": _RANK,
        "lora_alpha": _ALPHA,
        "rank_pattern": _PATTERN | {"additionalProperties": _RANK},
        "alpha_pattern": _PATTERN | {"additionalProperties": _ALPHA},
        "use_rslora": {"type": "boolean"},
    },
    # Variants whose layers compute something else.
    "patternProperties": {r"^use_(?!rslora\Z)": {"enum": [False, None]}},
}


class Lora(NamedTuple):
    """A file with a LoRA.

    Attributes:
      path: the file.
      tensors: what is in it.
      config: fields of peft's LoraConfig; {} where there is none.
    """

    path: Path
    tensors: Tensors
    config: Mapping[str, Any]

    @property
    def origin(self) -> Card:
        """Its entry in a card's `merged`."""
        with self.path.open("rb") as file:
            return {"file": self.path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def find(source: Path | None, given: str | os.PathLike, networks: Sequence[str]) -> dict[str, Lora]:
    """The LoRA of each network in a folder of weights, for those that have one.

    Args:
      source: the folder; a LoRA may lie in it, which is that of the first network, or in a network's own folder. None:
        no folder.
      given: a file, which is that of the first network, or a folder like `source`; '' for none.
      networks: folders of the networks in `source`; '' for `source` itself.
    Raises:
      UserError: a network has several, `given` has none, or a file is no LoRA that can be read.
    """
    given, found, used = Path(given) if given else None, {}, False
    for network in networks:
        places = dict.fromkeys(["", network] if network == networks[0] else [network])
        files = [path for place in places for path in beside(source, place)] if source else []
        if given and given.is_dir():
            own = [path for place in places for path in _files(given, place, (PEFT,)) or _whole(given, place)]
        else:
            own = [given] if given and network == networks[0] else []
        used, files = used or bool(own), files + own
        if len(files) > 1:
            raise UserError(
                f"there are several LoRAs, {', '.join(map(str, files))}: one can be merged, leave one there"
            )
        if files:
            found[network] = _open(files[0])
    if given and not used:
        raise UserError(f"--lora={given} holds no LoRA: there is no {PEFT} and no file of safetensors")
    return found


def beside(root: Path, place: str) -> list[Path]:
    """The LoRAs in a folder of weights."""
    return _files(root, place, PATTERNS)


def _files(root: Path, place: str, patterns: Sequence[str]) -> list[Path]:
    """The files in a folder of `root` that match."""
    names = dict.fromkeys(path.name for pattern in patterns for path in sorted((root / place).glob(pattern)))
    return [within(root, os.path.join(place, name)) for name in names]


def _whole(root: Path, place: str) -> list[Path]:
    """The files in a folder where a LoRA is expected: diffusers' by its name, or all."""
    return _files(root, place, (FILE,)) or _files(root, place, ("*.safetensors",))


def _open(path: Path) -> Lora:
    config: dict[str, Any] = {}
    if path.name == PEFT:
        config, path = read_json(path), within(path.parent, "adapter_model.safetensors")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is a LoRA, but no file of safetensors: save it as one")
    tensors = open_file(path)
    if not config and "lora_adapter_metadata" in (metadata := read_metadata(path)):
        config = parse_json(metadata["lora_adapter_metadata"].encode(), path)
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
    if config:
        require_schema(config, _CONFIG, path, "its settings are none of a LoRA that can be merged")
    return Lora(path, tensors, config)


def tables(keys: Keys, config: Mapping[str, Any], network: str = "") -> list[list[Rule]]:
    """The rules for one network of our `config` in all names that a LoRA may use: diffusers', then the authors'.

    Args:
      network: its folder, where the rules are those of several networks.
    """
    both = [keys.table(config)] + ([keys.original_table(config)] if isinstance(keys, OriginalKeys) else [])
    prefix = f"{network}." if network else ""
    return [
        [rule._replace(theirs=rule.theirs.removeprefix(prefix)) for rule in table if rule.theirs.startswith(prefix)]
        for table in both
    ]


def merged(tensors: Tensors, lora: Lora | None, names: Sequence[Sequence[Rule]], own: int = 0) -> Tensors:
    """The tensors W + up down alpha / rank, each computed when it is read, in float32 and in its own dtype.

    Args:
      tensors: the weights of a network.
      lora: None for none.
      names: `tables` of the network.
      own: the number of the table that has the names of `tensors`.
    Raises:
      UserError: the LoRA changes what the network does not have, or not by one matrix, or shapes do not fit.
    """
    if lora is None:
        return tensors
    changed, path = dict(tensors.lazy), lora.path
    if not (modules := _modules(lora)):
        raise UserError(f"{path} is empty: is it a LoRA?")
    for module, parts in modules.items():
        scale = _scale(lora, module, parts)
        for ending, change in parts.items():
            if (key := _renamed(f"{module}.{ending}", names, own)) not in changed:
                raise UserError(
                    f"{path} changes {module}.{ending}, which the network does not have: is it another one's?"
                )
            changed[key] = _changed(changed[key], change, scale, f"{path}: the change of {module}.{ending}")
    print(f"transformer: a LoRA changes {len(modules)} layers", flush=True)
    return Tensors(changed, tensors.nbytes)


def _modules(lora: Lora) -> dict[str, dict[str, dict[str, Lazy]]]:
    """Layer -> ending of a weight -> what changes it: up and down, diff, scaled, alpha."""
    found: dict[str, dict[str, dict[str, Lazy]]] = {}
    for key, tensor in lora.tensors.lazy.items():
        for word, kind in OTHERS.items():
            if f".{word}" in key:
                raise UserError(f"{lora.path} is a {kind}, not a LoRA: merge it with the program that it is for")
        name = next(key.removeprefix(prefix) for prefix in PREFIXES if key.startswith(prefix))
        ending = next((ending for ending in ENDINGS if name.endswith(f".{ending}")), None)
        if ending is None:
            raise UserError(
                f"{lora.path} has {key:.200}, which is not known in a LoRA: save it in the names of diffusers"
            )
        kind, weight = ENDINGS[ending]
        change = found.setdefault(name.removesuffix(f".{ending}"), {}).setdefault(weight, {})
        if kind in change:
            raise UserError(f"{lora.path} has {key:.200} twice, under two names")
        change[kind] = tensor
    return found


def _scale(lora: Lora, module: str, parts: Mapping[str, Mapping[str, Lazy]]) -> float:
    """alpha / rank of a layer; 1 where nothing says it."""
    weight, config = parts.get("weight", {}), lora.config
    if "down" not in weight:
        return 1.0
    rank, place = weight["down"].shape[0] if weight["down"].shape else 0, f"{lora.path}: {module}"
    if "alpha" in weight:
        if config:
            raise UserError(f"{place} has an alpha, and the metadata has another: remove one")
        if weight["alpha"].size != 1 or not math.isfinite(alpha := float(weight["alpha"].read().item())):
            raise UserError(f"{place}.alpha is not a number")
        return alpha / max(rank, 1)
    if not config:
        return 1.0
    stated = _of_pattern(config.get("rank_pattern"), module, config["r"])
    if stated != rank:
        raise UserError(f"{place} has rank {rank}, but the settings beside it say {stated}")
    alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(pattern: Mapping[str, float | int] | None, module: str, default: float | int) -> float | int:
    """The value for a layer in peft's rank_pattern or alpha_pattern: of its name, or (without ^) of its last parts."""
    for name, value in (pattern or {}).items():
        if module == name.removeprefix("^") or module.endswith(f".{name}"):
            return value
    return default


def _renamed(key: str, names: Sequence[Sequence[Rule]], own: int) -> str | None:
    """A key in the names of table `own`; None if no table has it."""
    for table in names:
        for rule, wanted in zip(table, names[own], strict=True):
            if (fields := match(rule.theirs, key)) is not None:
                return wanted.theirs.format(**fields)
    return None


def _changed(weight: Lazy, change: Mapping[str, Lazy], scale: float, place: str) -> Lazy:
    """One weight with its change."""
    products = {"up", "down"} & change.keys()
    if len(products) == 1 or not change.keys() - {"alpha"}:
        raise UserError(f"{place} lacks a matrix")
    if products:
        up, down = change["up"], change["down"]
        # The window of a convolution is in `down`, with `rank` channels out, and `up` has a window of 1.
        matrices = min(len(x.shape) for x in (weight, up, down)) > 1
        wanted = (weight.shape[0], *down.shape[:1]) + (1,) * (len(up.shape) - 2)
        if not matrices or up.shape != wanted or down.shape[1:] != weight.shape[1:]:
            raise UserError(f"{place}, {up.shape} and {down.shape}, does not fit a weight of {weight.shape}")
    whole = {kind: scale if kind == "scaled" else 1.0 for kind in ("scaled", "diff") if kind in change}
    for kind in whole:
        if change[kind].shape != weight.shape:
            raise UserError(f"{place}, {change[kind].shape}, does not fit a weight of {weight.shape}")

    def read() -> np.ndarray:
        total = weight.read().astype(np.float32)
        if products:
            up, down = (change[name].read().astype(np.float32) for name in ("up", "down"))
            total += np.float32(scale) * (up.reshape(up.shape[:2]) @ down.reshape(len(down), -1)).reshape(total.shape)
        for kind, factor in whole.items():
            total += np.float32(factor) * change[kind].read().astype(np.float32)
        return total.astype(weight.dtype)

    return Lazy(weight.shape, weight.dtype, read)
