"""Adapters merged into the weights that they change: what every other way to use an adapter is compared with."""

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dollar_jax.types import Params


def merge(base: Params, adapter: Params, alpha: float = 0.0) -> Params:
    """The parameters W + s A B with s = alpha / rank, 1 for alpha 0; each keeps the dtype of W."""
    flat, matrices = flatten_dict(base, sep="/"), flatten_dict(adapter, sep="/")
    for path in {name.rpartition("/")[0] for name in matrices}:
        kernel, a, b = flat[f"{path}/kernel"], matrices[f"{path}/lora_a"], matrices[f"{path}/lora_b"]
        scale = alpha / a.shape[-1] if alpha else 1.0
        flat[f"{path}/kernel"] = (kernel.astype(jnp.float32) + scale * (a @ b)).astype(kernel.dtype)
    return unflatten_dict(flat, sep="/")
