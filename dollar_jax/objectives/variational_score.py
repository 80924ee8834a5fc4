"""Variational score distillation (Eq. 10-13)."""

import jax
import jax.numpy as jnp
from jax import lax

from dollar_jax import diffusion
from dollar_jax.errors import UserError
from dollar_jax.objectives.context import Context
from dollar_jax.sampling import draw_times, fold, normal, repeat
from dollar_jax.types import Latent, PerExample

NEAR = 1e-3  # mean |x - x0| below which they count as equal, for latents of about unit variance


def kl_direction(x0_real: Latent, x0_fake: Latent) -> Latent:
    """Gradient of KL(p_fake,t || p_real,t) in a sample x, times b^2 / a^2, where x_t = a x + b eps (Eq. 12, 13).

    The gradient is -(s_real - s_fake) a; the factor a comes from the chain rule through the noising. With
    s = -(x_t - a x0) / b^2 it equals a^2 / b^2 (x0_fake - x0_real). The weight b^2 / a^2 keeps it finite without signal
    and without noise.
    """
    return x0_fake - x0_real


def normalized(gradient: Latent, x: Latent, x0_real: Latent) -> Latent:
    """gradient / max(mean |x - x0_real|, NEAR), with a mean over each example, as in DMD."""
    return gradient / jnp.maximum(jnp.mean(jnp.abs(x - x0_real), axis=(1, 2, 3, 4), keepdims=True), NEAR)


def follow(x: Latent, gradient: Latent) -> PerExample:
    """A loss whose gradient in x is `gradient` / n for n elements; its value is half the mean of gradient^2. [b]

    Like all losses it is a mean over elements, so that weights do not depend on the resolution.
    """
    return 0.5 * jnp.mean((x - lax.stop_gradient(x - gradient)) ** 2, axis=(1, 2, 3, 4))


def variational_score(
    context: Context,
    *,
    guidance: float = 3.5,
    normalize: bool = True,
    low: float = 0.02,
    high: float = 0.98,
    decoupled: bool = False,
    data_share: float = 0.0,
) -> tuple[PerExample, dict]:
    """Moves the generated x along `kl_direction` between the real and the fake score, at a random time (Eq. 12). [b]

    Args:
      guidance: w of the real score, the teacher; the fake score has no guidance.
      normalize: whether to normalise the gradient, see `normalized`.
      low, high: fractions of all training times; the time is uniform in `matched_times` between them, see
        `sampling.draw_times`. They come before the shift of a flow, S: noise levels are S(low) to S(high). Bounds of
        the levels themselves, as in Self-Forcing, are given through its inverse, as in `configs/wan.py`.
      decoupled: whether guidance is a term of its own, w (x0_caption - x0_negative), with its own noise and a time up
        to that of the student's input: it then sharpens only what the student still has to decide (decoupled DMD, arXiv
        2511.22677). It is meant for `generator.matched_times` "all".
      data_share: share of examples whose real score is taken at data of the same caption in place of x, with the same
        noise and time: x0_fake(a x + b eps) - x0_real(a x_data + b eps) (Data Forcing, arXiv 2606.18478). It repairs
        what the teacher lacks, once VSD has brought the student close.

    Raises:
      UserError: no training time is between low and high, or `data_share` needs videos that are not there.
    """
    schedule, count = context.schedule, len(context.schedule.times)
    if not 0 <= round(low * count) < round(high * count) <= count:
        raise UserError(f"variational_score: low={low:g}, high={high:g}, wanted 0 <= low < high <= 1")
    if data_share and context.latents is None:
        raise UserError(f"variational_score: data_share={data_share:g} needs videos, and there are prompts alone")
    times = draw_times(fold(context.keys, 0), schedule, context.matched_times, low, high)
    # `high` may be below all times of a span. No noise can be added to a state at an earlier time than its own.
    times = jnp.where(times > context.state_at, times, context.generated_at)

    x, eps = lax.stop_gradient(context.generated), normal(fold(context.keys, 1), context.generated.shape[1:])
    x_t, *_ = diffusion.forward_from(context.state, eps, *schedule.at(context.state_at), *schedule.at(times))
    real_t = x_t
    if data_share:
        chosen = jax.vmap(lambda key: jax.random.bernoulli(key, data_share))(fold(context.keys, 2))
        data_t = diffusion.forward(context.latents, eps, *schedule.at(times))
        real_t = jnp.where(chosen[:, None, None, None, None], data_t, x_t)
    x0_real, _ = context.teacher(0.0 if decoupled else guidance)(real_t, times, context.condition)
    x0_fake, _ = context.fake_score(x_t, times, context.condition)
    gradient = kl_direction(x0_real, x0_fake)
    if decoupled:
        gradient -= guidance * _contrast(context, x, low, high)
    if normalize:
        gradient = normalized(gradient, x, x0_real)
    return follow(context.generated, gradient), {}


def _contrast(context: Context, x: Latent, low: float, high: float) -> Latent:
    """x0_caption - x0_negative of the teacher, at a time up to that of the student's input."""
    schedule = context.schedule
    span = jnp.full_like(context.generated_at, schedule.clean), context.generated_at
    times = draw_times(fold(context.keys, 3), schedule, span, low, high)
    x_t = diffusion.forward(x, normal(fold(context.keys, 4), x.shape[1:]), *schedule.at(times))
    conditions = context.condition, repeat(context.negative, len(x))
    x0_caption, x0_negative = (context.teacher(0.0)(x_t, times, condition)[0] for condition in conditions)
    return x0_caption - x0_negative


variational_score.needs = ("fake_score",)
