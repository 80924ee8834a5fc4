"""Eq. 4: the diffusion loss, on data for the teacher and on the student's samples for the fake score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dollar_jax import diffusion
from dollar_jax.diffusion import PredictionType, Schedule
from dollar_jax.objectives.context import Context
from dollar_jax.sampling import Keys, draw_times, fold, normal
from dollar_jax.types import Latent, PerExample, Text, Times


def squared_error(velocity: Latent, target: Latent) -> PerExample:
    """||v_theta(x_t, t) - v||^2, a mean over elements (Eq. 4; v = x0 - eps for the conjugate kind). [b]"""
    return jnp.mean((velocity - target) ** 2, axis=(1, 2, 3, 4))


def denoising_loss(
    network: Callable[[Latent, Times, Text], Latent],
    kind: PredictionType,
    schedule: Schedule,
    x0: Latent,
    times: Times,
    text: Text,
    keys: Keys,
) -> PerExample:
    """Noises x0 to `times` and scores the network's velocity there against the target of its kind. [b]"""
    eps = normal(keys, x0.shape[1:])
    a, b = schedule.at(times)
    velocity = network(diffusion.forward(x0, eps, a, b), times, text).astype(jnp.float32)
    return squared_error(velocity, diffusion.from_x0_eps(kind, x0, eps, a, b))


def drop_captions(text: Text, null_text: Float[Array, "1 l d"], share: float, keys: Keys) -> Text:
    """The empty caption in place of this share of the captions, in expectation. [b l d]"""
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys)
    return jnp.where(dropped[:, None, None], null_text, text)


def denoising(
    context: Context, *, kind: PredictionType = "conjugate", caption_dropout: float = 0.1
) -> tuple[PerExample, dict]:
    """Eq. 4 on data for the network in training: what holds a teacher while it is tuned for a reward. [b]

    Args:
      kind: of the velocity in which the error is measured.
      caption_dropout: the share of captions that are empty, as in the teacher's pretraining: guidance needs the network
        without a caption too, and nothing else here would hold it.
    """
    count = context.schedule.signal.shape[0] - 1
    size = len(context.text)
    times = draw_times(fold(context.keys, 0), (jnp.zeros(size, jnp.int32), jnp.full(size, count)))
    text = drop_captions(context.text, context.null_text, caption_dropout, fold(context.keys, 2))

    def network(x_t, times, text):
        return diffusion.from_x0_eps(kind, *context.student(x_t, times, text), *context.schedule.at(times))

    return denoising_loss(network, kind, context.schedule, context.latents, times, text, fold(context.keys, 1)), {}


denoising.needs = ()
