"""Tensors in PyTorch's files: read one at a time from safetensors or weights-only pickles, written as safetensors."""

import json
import os
import re
import zipfile
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dollar_jax.errors import UserError, first_line
from dollar_jax.lazy import Lazy, lazy
from dollar_jax.reading import read_json, within

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of diffusers, of transformers, of both in the past
SHARD_BYTES = 2 * 10**9  # one is in memory
SAFE_TORCH = (2, 10)  # before, weights_only did not keep a pickle from running code: CVE-2025-32434, CVE-2026-24747
SHARD = re.compile(r"\w[\w.-]{0,200}\.(safetensors|bin)")
KEY = re.compile(r"[\w./-]{1,300}")
TORCH_DTYPES = {  # NumPy has no others
    name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
DTYPES = dict(  # of safetensors
    zip(("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"), TORCH_DTYPES.values(), strict=True)
)


@dataclass(frozen=True)
class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, each read from disk when it is asked for.

    Attributes:
      lazy: the tensors, of which shape and dtype are known without reading them.
      nbytes: the size of the files in bytes.
    """

    lazy: dict[str, Lazy]
    nbytes: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tensor.shape for key, tensor in self.lazy.items()}

    def without(self, keys: Container[str]) -> "Tensors":
        """The tensors without these keys, which need not be there."""
        return Tensors({key: tensor for key, tensor in self.lazy.items() if key not in keys}, self.nbytes)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.lazy[key].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.lazy)

    def __len__(self) -> int:
        return len(self.lazy)


def joined(parts: Mapping[str, Tensors]) -> Tensors:
    """The tensors of several networks, each behind the name of its part: `PART.KEY`."""
    named = {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.lazy.items()}
    return Tensors(named, sum(tensors.nbytes for tensors in parts.values()))


def parted(tensors: Mapping[str, Lazy], parts: Sequence[str]) -> dict[str, dict[str, Lazy]]:
    """The tensors of each network, the inverse of `joined`; of one alone the names have no part in front."""
    if len(parts) == 1:
        return {parts[0]: dict(tensors)}
    return {
        part: {key.removeprefix(f"{part}."): x for key, x in tensors.items() if key.startswith(f"{part}.")}
        for part in parts
    }


def open_folder(root: Path, folder: str = "") -> Tensors:
    """The weights of a diffusers or transformers model folder, in one file or in several with an index.

    Args:
      root: the folder that the user named; links may lead to files anywhere in it.
      folder: the model's folder in it.
    Raises:
      UserError: there are none, some are missing or outside, or they cannot be read.
    """
    names = [f"{stem}.{end}" for end in ("safetensors", "bin") for stem in STEMS]
    place = Path(root) / folder
    for name in names:
        if (place / name).exists():
            return open_file(within(root, os.path.join(folder, name)))
        if (place / f"{name}.index.json").exists():
            return _open_shards(root, os.path.join(folder, f"{name}.index.json"))
    raise UserError(f"{place} has no weights: there is none of {', '.join(names)}, nor an index of one")


def _open_shards(root: Path, name: str) -> Tensors:
    index, folder = within(root, name), os.path.dirname(name)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(x, str) and SHARD.fullmatch(x) for x in places.values()):
        raise UserError(f"{index} is no index of weights: weight_map names a file beside it for each tensor")
    shards = {name: open_file(within(root, os.path.join(folder, name))) for name in sorted(set(places.values()))}
    for key, name in places.items():
        if key not in shards[name]:
            raise UserError(f"{index} says that {key!r:.300} is in {name}, where it is not")
    found = {key: tensor for shard in shards.values() for key, tensor in shard.lazy.items()}
    return Tensors(found, sum(shard.nbytes for shard in shards.values()))


def open_file(path: Path) -> Tensors:
    """The tensors of one file: safetensors, or a pickle that holds tensors only.

    Raises:
      UserError: it is missing, cut off, wants to run code, or holds something other than tensors of a network.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    tensors = (_open_safetensors if path.suffix == ".safetensors" else _open_pickle)(path)
    if odd := [key for key in tensors if not KEY.fullmatch(key)]:
        raise UserError(f"{path} has a tensor with the odd name {odd[0]!r:.100}: is it a file of weights?")
    return tensors


def _open_safetensors(path: Path) -> Tensors:
    try:
        file = safe_open(path, "np", backend="pread")  # mapped files count as memory
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, copy it again: {first_line(error)}") from error
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 it is no dict
    for key, part in slices.items():
        _require_dtype(path, key, part.get_dtype(), DTYPES)
    found = {
        key: Lazy(tuple(part.get_shape()), DTYPES[part.get_dtype()], partial(file.get_tensor, key))
        for key, part in slices.items()
    }
    return Tensors(found, path.stat().st_size)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a file of safetensors, which `open_file` reads."""
    return safe_open(path, "np", backend="pread").metadata() or {}


def _require_dtype(path: Path, key: str, dtype: str, known: Collection[str]) -> None:
    if dtype not in known:
        raise UserError(f"{path} holds {key!r:.300} as {dtype}: only {', '.join(known)} can be converted")


def _torch_name(tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _open_pickle(path: Path) -> Tensors:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs PyTorch to be read: pip install torch, or save it as safetensors") from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise UserError(
            f"{path} is a pickle, which PyTorch {torch.__version__} may run as code: pip install"
            f" 'torch>={'.'.join(map(str, SAFE_TORCH))}', or save it as safetensors"
        )
    load = {"map_location": "cpu", "weights_only": True}
    try:
        _require_stored(path)
        try:
            content = torch.load(path, mmap=True, **load)
        except (RuntimeError, ValueError):  # the old format cannot be mapped into memory
            content = torch.load(path, **load)
    except Exception as error:  # torch raises anything that its unpickler raises
        raise UserError(
            f"{path} is damaged, or holds more than tensors and was not run: {first_line(error)}"
        ) from error
    # Training scripts of open_clip put the weights beside their optimizer's.
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    named = content.items() if isinstance(content, dict) else ()
    tensors = {key: x.detach() for key, x in named if isinstance(key, str) and isinstance(x, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name")
    for key, tensor in tensors.items():
        _require_dtype(path, key, _torch_name(tensor), TORCH_DTYPES)
        # Strides of zero would make terabytes of a few bytes.
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{path} holds {key!r:.300}, which is no dense tensor")

    def read(tensor):
        tensor = tensor.contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    found = {
        key: Lazy(tuple(tensor.shape), TORCH_DTYPES[_torch_name(tensor)], partial(read, tensor))
        for key, tensor in tensors.items()
    }
    return Tensors(found, path.stat().st_size)


def _require_stored(path: Path) -> None:
    """Raises an exception if the file is a damaged zip archive, PyTorch's format, or one with a compressed entry."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # as PyTorch tells: the old format is no archive
            return
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, and may unpack to more than the memory; torch.save compresses nothing")


def write_folder(
    folder: Path, stem: str, state_dict: Mapping[str, np.ndarray | Lazy], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes `stem`.safetensors, or shards of at most `shard_bytes` (one tensor at least) and their index.

    One shard is in memory: safetensors writes a file at once.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for key, value in state_dict.items():
        if shards[-1] and size + value.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += value.nbytes
    places = {}
    for number, keys in enumerate(shards, 1):
        name = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, {key: state_dict[key] for key in keys})
        places |= dict.fromkeys(keys, name)
    if len(shards) > 1:
        total = sum(value.nbytes for value in state_dict.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_file(
    path: Path, tensors: Mapping[str, np.ndarray | Lazy], metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes a file of safetensors, with more fields of its header's metadata. All tensors are in memory."""
    contiguous = {key: np.asarray(lazy(value).read(), order="C") for key, value in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt", **metadata})  # transformers refuses files without it
