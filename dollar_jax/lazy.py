"""Arrays that are made when they are asked for, so that a network can be converted one parameter at a time."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from dollar_jax.errors import UserError
from dollar_jax.types import Params


@dataclass(frozen=True, eq=False)
class Lazy:
    """An array of which shape and dtype are known; `read` makes it anew at each call."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def through(self, change: Callable[[np.ndarray], np.ndarray]) -> "Lazy":
        """`change` of the array. Shape and dtype come from a stand-in, an array of one zero in all places."""
        made = change(np.broadcast_to(np.zeros((), self.dtype), self.shape))
        return Lazy(made.shape, made.dtype, lambda: change(self.read()))


def lazy(array: Array | np.ndarray | Lazy) -> Lazy:
    """An array that exists already, as a `Lazy`."""
    return array if isinstance(array, Lazy) else Lazy(array.shape, np.dtype(array.dtype), lambda: np.asarray(array))


class Writer(ocp.type_handlers.NumpyHandler):
    """Orbax's writer of `Lazy` arrays: reads one, writes it and frees it before the next, and makes no copy."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values, infos, args=None):
        for value, info, arg in zip(values, infos, args, strict=True):
            for written in await super().serialize([value.read()], [info], [arg]):
                written.result()
        return []


def stored(place: Path, metadata: Params) -> Params:
    """The arrays of the Orbax checkpoint in `place`, as a tree of `Lazy`.

    Args:
      metadata: Orbax's description of each array.
    """

    def one(path: tuple, array: ocp.metadata.ArrayMetadata) -> Lazy:
        raw = place / array.name / ".".join("0" * len(array.shape))
        read = partial(_read_raw, raw, array) if _is_raw(raw, array) else partial(_read, place, path)
        return Lazy(tuple(array.shape), np.dtype(array.dtype), intact(place)(read))

    return jax.tree.map_with_path(one, metadata)


@contextmanager
def intact(place: Path) -> Iterator[None]:
    """Turns an error of the libraries that read the Orbax checkpoint in `place` into a UserError of one line."""
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):  # the last is a device without memory
        raise
    except Exception as error:  # each library raises its own exceptions
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{place} is damaged ({reason}): copy it again, or take another checkpoint") from error


def require_small_chunks(place: Path, metadata: Params) -> None:
    """Raises UserError if a chunk is larger than its array: its few bytes could unpack to more than the memory.

    Args:
      metadata: Orbax's description of each array of the checkpoint in `place`.
    """
    for array in jax.tree.leaves(metadata):
        if any(chunk > max(size, 1) for chunk, size in zip(array.storage.chunk_shape, array.shape, strict=True)):
            raise UserError(f"{place} is damaged ({array.name} has chunks larger than itself): take another checkpoint")


def _is_raw(path: Path, array: ocp.metadata.ArrayMetadata) -> bool:
    """Whether `path`, a file of a zarr folder, has the numbers of the whole array and nothing else."""
    if not path.is_file() or array.storage.chunk_shape != array.shape:
        return False
    zarr = json.loads((path.parent / ".zarray").read_text())
    return (zarr["compressor"], zarr["filters"], zarr["order"]) == (None, None, "C")


def _read_raw(path: Path, array: ocp.metadata.ArrayMetadata) -> np.ndarray:
    """Orbax would need the memory of two such arrays."""
    return np.fromfile(path, array.dtype).reshape(array.shape)


def _read(place: Path, path: tuple) -> np.ndarray:
    """One array, in whichever chunks it is stored."""

    def alone(leaf: Any) -> dict[str, Any]:
        return reduce(lambda tree, step: {step.key: tree}, reversed(path), leaf)

    arguments = ocp.args.PyTreeRestore(
        item=alone(0), restore_args=alone(ocp.RestoreArgs(restore_type=np.ndarray)), partial_restore=True
    )
    with ocp.PyTreeCheckpointer() as reader:
        return jax.tree.leaves(reader.restore(place, arguments))[0]
