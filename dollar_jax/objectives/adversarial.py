"""An adversarial term: a discriminator on the fake score's features tells samples from data, as in DMD2.

DMD2 (arXiv 2405.14867) also lets the discriminator's loss train the fake score; here the fake score is trained by Eq. 4
alone, so that its score stays that of the samples, and the discriminator is heads on its features.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from dollar_jax import diffusion
from dollar_jax.models.network import Network, from_module
from dollar_jax.objectives import Own
from dollar_jax.objectives.context import Context
from dollar_jax.sampling import MARGIN, all_times, draw_times, fold, normal
from dollar_jax.types import Latent, PerExample

Logits = Float[Array, "b heads"]  # above 0 for data


def generator_loss(generated: Logits) -> PerExample:
    """softplus(-D) of samples, a mean over heads: the student is to make what passes for data. [b]"""
    return jnp.mean(jax.nn.softplus(-generated), axis=1)


def discriminator_loss(generated: Logits, data: Logits) -> PerExample:
    """softplus(D) of samples + softplus(-D) of data, a mean over heads; best is D = log p_data - log p_samples. [b]"""
    return jnp.mean(jax.nn.softplus(generated) + jax.nn.softplus(-data), axis=1)


class Heads(nnx.Module):
    """A perceptron on each token of the features at each depth; a logit is the mean over the tokens."""

    def __init__(self, depths: Sequence[float], sizes: Sequence[int], width: int, rngs: nnx.Rngs):
        self.depths = tuple(depths)
        self.norms = nnx.List([nnx.LayerNorm(size, use_fast_variance=False, rngs=rngs) for size in sizes])
        self.inner = nnx.List([nnx.Linear(size, width, rngs=rngs) for size in sizes])
        self.outer = nnx.List([nnx.Linear(width, 1, rngs=rngs) for _ in sizes])

    def __call__(self, features: Callable) -> Logits:
        """The logits for `features`, a function of depths, see `Context.features`."""
        found = zip(features(self.depths), self.norms, self.inner, self.outer, strict=True)
        logits = [outer(jax.nn.silu(inner(norm(x.astype(jnp.float32))))) for x, norm, inner, outer in found]
        return jnp.stack([logit.mean((1, 2)) for logit in logits], axis=1)


def build(
    latents, condition, features: Callable, *, depths: Sequence[float] = (0.5, 0.75, 1.0), width: int = 256
) -> Network:
    """The discriminator's heads.

    Args:
      latents, condition, features: see `Own.build`.
      depths: shares of the fake score's blocks after which there is a head.
      width: hidden width of a head.
    Raises:
      UserError: the transformer has no features.
    """
    del latents, condition
    sizes = [x.shape[-1] for x in features(depths)]
    return from_module(lambda rngs: Heads(depths, sizes, width, rngs))


def logits(context: Context, x0: Latent) -> Logits:
    """The discriminator's logits of x0 at a random time; samples and data get the same time and noise."""
    schedule = context.schedule
    every = all_times(schedule, len(x0))
    times = draw_times(fold(context.keys, 0), schedule, every, MARGIN, 1 - MARGIN)
    x_t = diffusion.forward(x0, normal(fold(context.keys, 1), x0.shape[1:]), *schedule.at(times))
    return context.own(partial(context.features, x_t, times, context.condition))


def own_loss(context: Context) -> tuple[PerExample, dict]:
    """`discriminator_loss` of the heads; the metric is how much higher the logits of data are. [b]"""
    generated, data = (logits(context, x0) for x0 in (lax.stop_gradient(context.generated), context.latents))
    return discriminator_loss(generated, data), {"logit_gap": jnp.mean(data - generated, axis=1)}


def adversarial(context: Context) -> tuple[PerExample, dict]:
    """`generator_loss` of the generated x, noised to a random time. [b]"""
    return generator_loss(logits(context, context.generated)), {}


adversarial.needs = ("fake_score", "videos")
adversarial.own = Own(build, own_loss, reads_features=True)
