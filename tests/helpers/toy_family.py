"""A family of models that the package does not know: a shifted flow, per-channel latents, two text encoders' outputs in
its condition and a negative prompt. And an adversarial objective with a discriminator of its own.

Networks of a few hundred parameters; a config names them as `toy_family:vae` and so on.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from dollar_jax import diffusion
from dollar_jax.models.network import Network
from dollar_jax.objectives import Own
from dollar_jax.sampling import draw_times, fold, normal
from dollar_jax.types import Condition

CHANNELS, PATCH = 6, 4
FOUR = (625.0, 2500 / 3, 937.5, 1000.0)  # sigma .625, .8333, .9375 and 1: Wan's usual times at shift 5


def _linear(key, inputs, outputs):
    return jax.random.normal(key, (inputs, outputs)) / inputs**0.5


def vae(dtype="float32") -> Network:
    """A linear map of 4 x 4 pixels, frame by frame; its channels have means and deviations of their own."""

    def init(key):
        keys = jax.random.split(key, 2)
        size = 3 * PATCH**2
        return {"encode": _linear(keys[0], size, CHANNELS), "decode": _linear(keys[1], CHANNELS, size)}

    def apply(params, x, method):
        if method == "encode":
            patches = rearrange(x, "b f (h p) (w q) c -> b f h w (p q c)", p=PATCH, q=PATCH)
            number = jnp.arange(1.0, CHANNELS + 1).reshape(1, 1, 1, 1, -1)
            mean = patches @ params["encode"] * number + number
            return mean, jnp.full_like(mean, -6.0)
        return rearrange(x @ params["decode"], "b f h w (p q c) -> b f (h p) (w q) c", p=PATCH, q=PATCH)

    return Network(init, apply)


def text_encoder(vocab_size: int, width: int = 5) -> Network:
    """Two encoders: embeddings of the tokens, and another one's mean over the real tokens as `extra["pooled"]`."""

    def init(key):
        keys = jax.random.split(key, 2)
        return {"words": jax.random.normal(keys[0], (vocab_size, width)), "pool": _linear(keys[1], vocab_size, 3)}

    def apply(params, tokens, mask):
        pooled = (params["pool"][tokens] * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return Condition(params["words"][tokens] * mask[:, :, None], mask, {"pooled": pooled})

    return Network(init, apply)


def transformer(width: int, gate_value=None, dtype="float32", remat="", attention=None) -> Network:
    """A perceptron on every position, shifted by time, words and pooled text; a mesh splits its kernels."""

    def init(key):
        keys = jax.random.split(key, 5)
        sizes = {"in": (CHANNELS, width), "told": (5 + 3, width), "time_expand": (2, width), "out": (width, CHANNELS)}
        if gate_value is not None:
            sizes["delta_expand"] = sizes["time_expand"]
        return {name: {"kernel": _linear(k, *size)} for k, (name, size) in zip(keys, sizes.items(), strict=False)}

    def embedded(layer, times):
        sigma = times[:, None] / 1000  # what this family's networks are told
        return jnp.concatenate([sigma, jnp.cos(3 * sigma)], axis=1) @ layer["kernel"]

    def apply(params, latents, times, condition, *more, method="__call__"):
        time = embedded(params["time_expand"], times)
        if gate_value is not None:
            time = (1 - gate_value) * time + gate_value * embedded(params["delta_expand"], *more)
        told = [condition.embedding.mean(1), condition.extra["pooled"]]
        shift = jnp.concatenate(told, axis=1) @ params["told"]["kernel"] + time
        hidden = jnp.tanh(latents @ params["in"]["kernel"] + shift[:, None, None, None])
        if method == "features":
            return [rearrange(hidden, "b f h w d -> b (f h w) d") for _ in more[0]]
        return hidden @ params["out"]["kernel"]

    return Network(init, apply)


# An adversarial objective, as in DMD2: the discriminator sees clips and samples at the same noise level.


def discriminator(latents, condition, *, width: int = 8) -> Network:
    """(x_t, times, condition) -> logits [b]."""
    text = condition.embedding.shape[-1]

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "in": _linear(keys[0], latents.shape[-1], width),
            "told": _linear(keys[1], text + 1, width),
            "out": _linear(keys[2], width, 1),
        }

    def apply(params, x_t, times, told):
        shift = jnp.concatenate([told.embedding.mean(1), times[:, None] / 1000], axis=1) @ params["told"]
        hidden = jnp.tanh(x_t @ params["in"] + shift[:, None, None, None]) ** 2
        return (hidden.mean((1, 2, 3)) @ params["out"])[:, 0]

    return Network(init, apply)


def _logits(context, x0, stream):
    """Of x0, noised to the same times by the same noise whichever x0 it is."""
    every = jnp.full(len(x0), context.schedule.clean), jnp.full(len(x0), context.schedule.last)
    times = draw_times(fold(context.keys, stream), context.schedule, every)
    eps = normal(fold(context.keys, stream + 1), x0.shape[1:])
    return context.own(diffusion.forward(x0, eps, *context.schedule.at(times)), times, context.condition)


def discriminator_loss(context, *, margin: float = 0.0):
    """softplus(D(fake) + margin) + softplus(margin - D(data)). [b]"""
    fake, data = (_logits(context, x0, 0) for x0 in (jax.lax.stop_gradient(context.generated), context.latents))
    return jax.nn.softplus(fake + margin) + jax.nn.softplus(margin - data), {"logit_gap": data - fake}


def adversarial(context, *, flip: float = 1.0):
    """softplus(-D(fake)): the sample is to look like data. [b]"""
    return jax.nn.softplus(-flip * _logits(context, context.generated, 2)), {}


adversarial.needs = ("videos",)
adversarial.own = Own(discriminator, discriminator_loss)
