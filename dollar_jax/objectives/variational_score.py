"""Variational score distillation (Eq. 10-13)."""

import jax.numpy as jnp
from jax import lax

from dollar_jax import diffusion
from dollar_jax.diffusion import Coefficient
from dollar_jax.notation import Latent, PerExample
from dollar_jax.objectives.context import Context
from dollar_jax.sampling import draw_times, fold, normal


def kl_gradient(s_real: Latent, s_fake: Latent, a: Coefficient) -> Latent:
    """Gradient of KL(p_fake,t || p_real,t) with respect to a sample x, where x_t = a x + b eps (Eq. 12).

    -(s_real(x_t) - s_fake(x_t)) a: the chain rule through the noising gives the a.
    """
    return -(s_real - s_fake) * a


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
    """Moves the generated x along the KL gradient, weighed by b^2 / a^2 so that it is a difference of x0 (Eq. 12). [b]

    Args:
      guidance: w of the real score; the fake score has none.
      normalize: divide by the mean of |x - x0_real| over each example's elements, as DMD does.
      low, high: the times are uniform in `matched_times` between these fractions of T.
    """
    steps = context.schedule.signal.shape[0] - 1
    first, end = context.matched_times
    span = jnp.maximum(first, round(low * steps)), jnp.minimum(end, round(high * steps))
    times = draw_times(fold(context.keys, 0), span)
    a, b = context.schedule.at(times)

    x = lax.stop_gradient(context.generated)
    x_t = diffusion.forward(x, normal(fold(context.keys, 1), x.shape[1:]), a, b)
    x0_real, _ = context.teacher(guidance)(x_t, times, context.text)
    x0_fake, _ = context.fake_score(x_t, times, context.text)
    s_real, s_fake = (diffusion.score(x0, x_t, a, b) for x0 in (x0_real, x0_fake))

    gradient = kl_gradient(s_real, s_fake, a) * b**2 / a**2
    if normalize:
        gradient = gradient / jnp.mean(jnp.abs(x - x0_real), axis=(1, 2, 3, 4), keepdims=True)
    return follow(context.generated, gradient), {}


variational_score.needs = ("fake_score",)
