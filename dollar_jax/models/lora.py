"""Adapters of low rank (LoRA, arXiv 2106.09685): y = x W + (x A) B s, with W of a frozen base and s = alpha / rank.

An adapter is a tree of parameters like the base's, with only the matrices `lora_a` (A) and `lora_b` (B) of the layers
that it changes. `attach` puts it beside the parameters of the base, which it neither copies nor changes, so that many
adapters share one base: the teacher is the base, student and fake score are the base with an adapter each.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dollar_jax.errors import UserError
from dollar_jax.models.linear import MATRICES, SCALE
from dollar_jax.models.network import Network
from dollar_jax.types import Key, Params

Shapes = Mapping[str, Any]  # a nested dict of arrays or ShapeDtypeStructs


def adaptable(network: Network, targets: Sequence[str]) -> list[str]:
    """Paths of the network's linear layers that match one of the patterns `targets` ("*attention/*", "*/expand").

    Raises:
      UserError: a pattern matches no layer.
    """
    for pattern in targets:
        if not any(fnmatchcase(path, pattern) for path in network.linears):
            known = ", ".join(network.linears) or "none: its layers are no dollar_jax.models.linear.Linear"
            raise UserError(f"lora.targets: {pattern!r} matches no layer of the network; they are {known}")
    return [path for path in network.linears if any(fnmatchcase(path, pattern) for pattern in targets)]


def init(base: Shapes, paths: Sequence[str], rank: int, key: Key) -> Params:
    """An adapter with A normal with variance 1 / (3 in) and B = 0, so that it changes nothing yet.

    A layer's matrices A [.. in rank] and B [.. rank out] have the leading axes (of a stack of blocks) of W [.. in out].
    The variance is that of Kaiming's uniform draw in PEFT.
    """
    flat, kernels = {}, flatten_dict(base, sep="/")
    for index, path in enumerate(paths):
        *stack, rows, columns = kernels[f"{path}/kernel"].shape
        if not 0 < rank <= min(rows, columns):
            raise UserError(f"lora.rank={rank} does not fit {path}, a matrix of {rows} x {columns}")
        draw = jax.random.normal(jax.random.fold_in(key, index), (*stack, rows, rank))
        flat[path] = dict(zip(MATRICES, (draw / math.sqrt(3 * rows), jnp.zeros((*stack, rank, columns))), strict=True))
    return unflatten_dict(flat, sep="/")


def factor(alpha: float, rank: int) -> float:
    """s, the factor of A B: alpha / rank; 1 for alpha 0."""
    return alpha / rank if alpha else 1.0


def attach(base: Params, adapter: Params, alpha: float = 0.0, strength: float = 1.0) -> Params:
    """The parameters of the network `base` with an adapter, for `Network.apply`.

    Args:
      alpha: see `factor`.
      strength: a factor of s: 0 is the base alone.
    """
    flat = flatten_dict(base, sep="/")
    for path, (a, b) in _pairs(adapter).items():
        scale = np.full(a.shape[:-2], strength * factor(alpha, a.shape[-1]), np.float32)
        names = (*MATRICES, SCALE)
        flat |= {f"{path}/{name}": value for name, value in zip(names, (a, b, scale), strict=True)}
    return unflatten_dict(flat, sep="/")


def fault(base: Shapes, adapter: Shapes) -> str:
    """Describes why a tree is no adapter of the network with the parameters `base`; '' if it is one."""
    kernels = flatten_dict(base, sep="/")
    flat = flatten_dict(adapter, sep="/")
    for path in {name.rpartition("/")[0] for name in flat}:
        names = [f"{path}/{name}" for name in MATRICES]
        kernel = kernels.get(f"{path}/kernel")
        if kernel is None or not all(name in flat for name in names):
            return f"{path} is no layer with an adapter"
        a, b = (tuple(flat[name].shape) for name in names)
        *stack, rows, columns = kernel.shape
        if a != (*stack, rows, a[-1]) or b != (*stack, a[-1], columns):
            return f"{path} has {a} and {b}, the network {tuple(kernel.shape)}"
    return "" if flat else "it is empty"


def _pairs(adapter: Params) -> dict[str, tuple[Any, Any]]:
    """Path of a layer -> (A, B)."""
    flat = flatten_dict(adapter, sep="/")
    paths = dict.fromkeys(name.rpartition("/")[0] for name in flat)
    return {path: tuple(flat[f"{path}/{name}"] for name in MATRICES) for path in paths}
