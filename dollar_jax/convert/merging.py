"""Adapters merged into the weights that they change, one matrix at a time."""

import os
from functools import partial

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dollar_jax.card import Card
from dollar_jax.checkpoint import open_base, open_component
from dollar_jax.lazy import Lazy
from dollar_jax.models.linear import MATRICES
from dollar_jax.models.lora import factor
from dollar_jax.types import Params


def open_merged(folder: str | os.PathLike, part: Card) -> Params:
    """The parameters of one component of a card as `Lazy` arrays, with its adapter merged into them if it has one.

    Of the sums W + A B s of a stack of blocks one is in float32 at a time. Arguments, errors:
    `checkpoint.load_component`.
    """
    if "lora" not in part:
        return open_component(folder, part)
    base, adapter = (flatten_dict(tree, sep="/") for tree in (open_base(folder, part), open_component(folder, part)))
    alpha = part["lora"]["alpha"]
    for path in {name.rpartition("/")[0] for name in adapter}:
        a, b = (adapter[f"{path}/{name}"] for name in MATRICES)
        kernel, scale = base[f"{path}/kernel"], factor(alpha, a.shape[-1])
        base[f"{path}/kernel"] = Lazy(kernel.shape, kernel.dtype, partial(_merged, kernel, a, b, scale))
    return unflatten_dict(base, sep="/")


def _merged(kernel: Lazy, a: Lazy, b: Lazy, scale: float) -> np.ndarray:
    # What is read from a checkpoint belongs to the reader and is changed in place; the rest is never in memory twice.
    merged, a, b = np.require(kernel.read(), requirements="W"), a.read(), b.read()
    for block in np.ndindex(merged.shape[:-2]):
        product = a[block].astype(np.float32) @ b[block].astype(np.float32)
        merged[block] = merged[block].astype(np.float32) + np.float32(scale) * product
    return merged
