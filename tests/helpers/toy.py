"""Networks of a handful of parameters with the interfaces of the real ones."""

import jax
import jax.numpy as jnp

from dollar_jax.models.network import Network
from dollar_jax.types import Condition


def _transformer():
    def init(key):
        keys = jax.random.split(key, 3)
        shapes = {"mix": (4, 4), "text": (2, 4), "time": (4,)}
        return {name: 0.3 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}

    def apply(params, latents, times, condition):
        shift = condition.embedding.mean(1) @ params["text"] + times[:, None] / 1000 * params["time"][None]
        return latents @ params["mix"] + shift[:, None, None, None]

    return Network(init, apply)


def _reward_model():
    def init(key):
        return {"weights": jax.random.normal(key, (4,))}

    def apply(params, latents, condition):
        return jnp.tanh(latents).mean((1, 2, 3)) @ params["weights"]

    return Network(init, apply)


TRANSFORMER, REWARD_MODEL = _transformer(), _reward_model()


LATENT_SHAPE = 1, 2, 2, 4


def batch(size=4, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "latents": jax.random.normal(keys[0], (size, *LATENT_SHAPE)),
        "condition": Condition(jax.random.normal(keys[1], (size, 3, 2)), jnp.ones((size, 3), bool)),
    }


def condition(size=1, length=1, width=1, value=0.0):
    """A condition of `size` captions with the same embeddings."""
    return Condition(jnp.full((size, length, width), value), jnp.ones((size, length), bool))


def greedy_stage(config, workdir, mesh):
    """A stage for which a GPU has too little memory."""
    raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5.00GiB.\nAllocator (GPU_0_bfc) ran out of memory"
    )
