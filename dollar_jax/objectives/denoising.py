"""The diffusion loss, Eq. 4: on data for the teacher, on samples of the student for the fake score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dollar_jax import diffusion
from dollar_jax.diffusion import PredictionType, Schedule
from dollar_jax.objectives.context import Context
from dollar_jax.sampling import Keys, all_times, draw_times, fold, normal
from dollar_jax.types import Condition, Latent, PerExample, Times


def squared_error(prediction: Latent, target: Latent) -> PerExample:
    """||v_theta(x_t, t) - v||^2, a mean over elements (Eq. 4; v = x0 - eps for the conjugate type). [b]"""
    return jnp.mean((prediction - target) ** 2, axis=(1, 2, 3, 4))


def denoising_loss(
    network: Callable[[Latent, Times, Condition], Latent],
    prediction_type: PredictionType,
    schedule: Schedule,
    state: Latent,
    times: Times,
    condition: Condition,
    keys: Keys,
    state_at: Times | None = None,
) -> PerExample:
    """Squared error of the network's prediction at x_t = a x0 + b eps, with eps drawn by `keys` (Eq. 4). [b]

    Args:
      state: x0.
      state_at: times of `state`, earlier than `times`, if it is not clean. The target is that of
        `diffusion.forward_from`; its noise is b / beta times as large, and the error is divided by the square of that.
    """
    zeta = normal(keys, state.shape[1:])
    at = schedule.at(times)
    at_state = schedule.at(jnp.full_like(times, schedule.clean) if state_at is None else state_at)
    x_t, x0, eps = diffusion.forward_from(state, zeta, *at_state, *at)
    prediction = network(x_t, times, condition).astype(jnp.float32)
    share = (diffusion.added_deviation(*at_state, *at) / at[1]).reshape(-1) ** 2
    return share * squared_error(prediction, diffusion.from_x0_eps(prediction_type, x0, eps, *at))


def drop_captions(condition: Condition, empty: Condition, share: float, keys: Keys) -> Condition:
    """Replaces each caption with probability `share` by the empty one (b = 1)."""
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys)
    return choose(dropped, empty, condition)


def choose(chosen: jax.Array, one: Condition, other: Condition) -> Condition:
    """Selects condition `one` (b = 1) for the chosen examples [b], and their own row of `other` for the rest."""
    return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (b.ndim - 1)), a, b), one, other)


def denoising(
    context: Context, *, prediction_type: PredictionType = "conjugate", caption_dropout: float = 0.1
) -> tuple[PerExample, dict]:
    """Eq. 4 on data for the network in training. It keeps a teacher close to data while a reward tunes it. [b]

    Args:
      prediction_type: type of the prediction whose error is measured.
      caption_dropout: share of captions that are replaced by the empty one, as in the teacher's pretraining. Guidance
        needs the network without a caption too, and no other loss would keep it.
    """
    schedule, size = context.schedule, len(context.latents)
    every = all_times(schedule, size)
    times = draw_times(fold(context.keys, 0), schedule, every)
    condition = drop_captions(context.condition, context.empty, caption_dropout, fold(context.keys, 2))

    def network(x_t, times, condition):
        x0_eps = context.student(x_t, times, condition)
        return diffusion.from_x0_eps(prediction_type, *x0_eps, *schedule.at(times))

    keys = fold(context.keys, 1)
    return denoising_loss(network, prediction_type, schedule, context.latents, times, condition, keys), {}


denoising.needs = ("videos",)
