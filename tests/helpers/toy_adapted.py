"""A transformer of a handful of parameters whose layers take adapters."""

import jax.numpy as jnp
from flax import nnx

from dollar_jax.models.linear import Linear
from dollar_jax.models.network import Network, from_module

WIDTH, HIDDEN = 4, 6


class Toy(nnx.Module):
    """Latents through two layers, the first with the caption and the time beside them."""

    def __init__(self, rngs):
        self.expand, self.contract = Linear(WIDTH + 3, HIDDEN, rngs=rngs), Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, latents, times, condition):
        told = jnp.concatenate([condition.embedding.mean(1), times[:, None] / 1000], axis=1)
        told = jnp.broadcast_to(told[:, None, None, None], (*latents.shape[:-1], told.shape[-1]))
        return self.contract(jnp.tanh(self.expand(jnp.concatenate([latents, told], axis=-1))))


def transformer(**options) -> Network:
    return from_module(Toy)
