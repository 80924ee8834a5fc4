"""Variational score distillation (Eq. 10-13)."""

import jax.numpy as jnp
from jax import lax

from dollar_jax import diffusion
from dollar_jax.errors import UserError
from dollar_jax.objectives.context import Context
from dollar_jax.sampling import draw_times, fold, normal
from dollar_jax.types import Latent, PerExample

NEAR = 1e-3  # x0 no further apart than this, for latents of about unit variance, are as good as equal


def kl_direction(x0_real: Latent, x0_fake: Latent) -> Latent:
    """b^2 / a^2 times the gradient of KL(p_fake,t || p_real,t) in a sample x, where x_t = a x + b eps (Eq. 12, 13).

    The gradient is -(s_real - s_fake) a, the a from the chain rule through the noising. With s = -(x_t - a x0) / b^2 it
    is a^2 / b^2 (x0_fake - x0_real); weighed so, it stays finite where there is no signal, or no noise.
    """
    return x0_fake - x0_real


def normalized(gradient: Latent, x: Latent, x0_real: Latent) -> Latent:
    """gradient / mean |x - x0_real|, each example by its own mean, as DMD does; by `NEAR` where that is less."""
    return gradient / jnp.maximum(jnp.mean(jnp.abs(x - x0_real), axis=(1, 2, 3, 4), keepdims=True), NEAR)


def follow(x: Latent, gradient: Latent) -> PerExample:
    """A loss whose gradient in x is `gradient` over the number of elements, and whose value is half its mean square.

    [b]. A mean, as every loss here, so that weights mean the same at every resolution.
    """
    return 0.5 * jnp.mean((x - lax.stop_gradient(x - gradient)) ** 2, axis=(1, 2, 3, 4))


def variational_score(
    context: Context,
    *,
    guidance: float = 3.5,
    normalize: bool = True,
    low: float = 0.02,
    high: float = 0.98,
) -> tuple[PerExample, dict]:
    """Moves the generated x along `kl_direction` of the real and the fake score at a time of its own (Eq. 12). [b]

    Args:
      guidance: w of the real score; the fake score has none.
      normalize: see `normalized`.
      low, high: the times are uniform in `matched_times` between these fractions of all training times, see
        `sampling.draw_times`.

    Raises:
      UserError: no training time is between low and high.
    """
    count = len(context.schedule.times)
    if not 0 <= round(low * count) < round(high * count) <= count:
        raise UserError(f"variational_score: low={low:g}, high={high:g}, wanted 0 <= low < high <= 1")
    times = draw_times(fold(context.keys, 0), context.schedule, context.matched_times, low, high)

    x = lax.stop_gradient(context.generated)
    x_t = diffusion.forward(x, normal(fold(context.keys, 1), x.shape[1:]), *context.schedule.at(times))
    x0_real, _ = context.teacher(guidance)(x_t, times, context.condition)
    x0_fake, _ = context.fake_score(x_t, times, context.condition)
    gradient = kl_direction(x0_real, x0_fake)
    if normalize:
        gradient = normalized(gradient, x, x0_real)
    return follow(context.generated, gradient), {}


variational_score.needs = ("fake_score",)
