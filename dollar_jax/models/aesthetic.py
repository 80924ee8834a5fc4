"""LAION's aesthetic predictors: map image embeddings of CLIP ViT-L/14 to ratings of about 1 .. 10.

The network is a stack of linear layers without activations between them (dropout in training only).
"""

from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dollar_jax.errors import UserError
from dollar_jax.models.network import Network, from_module
from dollar_jax.types import PerExample


def build(dtype: DTypeLike = jnp.float32, widths: Sequence[int] = (768, 1)) -> Network:
    """The network `apply(params, embeddings [b e]) -> ratings [b]` in float32; embeddings have unit length.

    Args:
      dtype: dtype of the computation; parameters are float32.
      widths: width of the embedding, then the output width of each layer: (768, 1) is LAION's linear predictor,
        (768, 1024, 128, 64, 16, 1) its MLP.
    Raises:
      UserError: there is no layer, or the last width is not 1.
    """
    if len(widths) < 2 or widths[-1] != 1:
        raise UserError(f"widths has at least two numbers and ends with 1, not {list(widths)}")
    return from_module(lambda rngs: Aesthetic(widths, dtype, rngs))


class Aesthetic(nnx.Module):
    """See the module's docstring; `build` makes the pure network."""

    def __init__(self, widths: Sequence[int], dtype: DTypeLike, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(n, m, dtype=dtype, rngs=rngs) for n, m in pairwise(widths)])

    def __call__(self, embeddings: Float[Array, "b e"]) -> PerExample:
        """One rating for each embedding."""
        for layer in self.layers:
            embeddings = layer(embeddings)
        return embeddings[:, 0].astype(jnp.float32)
