"""Continuous-time consistency distillation, sCM (arXiv 2410.11081), with the stabilisers of rCM (arXiv 2510.08431).

It is the limit of consistency distillation for two times that meet. Times are angles theta with tan theta = b / a, and
a state is x = (a x0 + b eps) / sqrt(a^2 + b^2) = cos x0 + sin eps. A network predicts the velocity of the state,
F = cos eps - sin x0, so that its x0 is f = cos x - sin F, and the probability flow of the teacher is dx / dtheta = F_T.
The student is right if f does not change along this flow: df / dtheta = 0.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dollar_jax import diffusion
from dollar_jax.diffusion import Coefficient
from dollar_jax.objectives.context import Context
from dollar_jax.objectives.variational_score import follow
from dollar_jax.sampling import MARGIN, Denoiser, all_times, draw_times, fold, normal
from dollar_jax.types import Latent, PerExample, Times

FLOOR = 0.1  # root mean square of a tangent below which it is no longer normalised


def tangent(
    x: Latent,
    velocity: Latent,
    teacher: Latent,
    derivative: Latent,
    a: Coefficient,
    b: Coefficient,
    warmth: float | Float[Array, ""],
) -> Latent:
    """g = -cos sqrt(1 - r^2 sin^2) (F - F_T) - r cos sin (x + dF / dtheta); for r = 1 it is cos df / dtheta.

    Args:
      x: state on the unit circle.
      velocity, teacher: F of the student and of the teacher there.
      derivative: dF / dtheta of the student along the teacher's flow.
      a, b: coefficients of the time, cos = a / sqrt(a^2 + b^2).
      warmth: r in 0..1; r = 0 leaves the difference to the teacher alone, which is bounded.
    """
    size = jnp.sqrt(a**2 + b**2)
    cos, sin = a / size, b / size
    return -cos * jnp.sqrt(1 - (warmth * sin) ** 2) * (velocity - teacher) - warmth * cos * sin * (x + derivative)


def along_the_flow(
    context: Context, student: Denoiser, teacher: Denoiser, x: Latent, times: Times
) -> tuple[Latent, Latent, Latent]:
    """(F, F_T, dF / dtheta) at states x on the unit circle: velocities of student and teacher, and the derivative of
    the student's along the teacher's flow, by forward-mode differentiation.
    """
    schedule = context.schedule

    def velocity(denoise, x, times):
        a, b = schedule.at(times)
        size = jnp.sqrt(a**2 + b**2)
        x0, eps = denoise(size * x, times, context.condition)
        return (a * eps - b * x0) / size

    def angle(times):
        a, b = schedule.at(times)
        return jnp.arctan2(b, a).reshape(-1)

    flow = velocity(teacher, x, times)
    _, speed = jax.jvp(angle, (times,), (jnp.ones_like(times),))
    found, derivative = jax.jvp(lambda *inputs: velocity(student, *inputs), (x, times), (flow, 1 / speed))
    return found, flow, derivative


def continuous_consistency(context: Context, *, guidance: float = 4.0, warmup: int = 1000) -> tuple[PerExample, dict]:
    """Moves the student's F along `tangent`, normalised by its root mean square, at noised data and a random time. [b]

    Args:
      guidance: w of the teacher whose flow is followed.
      warmup: number of updates of the student in which r of `tangent` rises from 0 to 1; 0 for none.
    """
    schedule = context.schedule
    every = all_times(schedule, len(context.latents))
    times = draw_times(fold(context.keys, 0), schedule, every, MARGIN, 1 - MARGIN)
    a, b = schedule.at(times)
    size = jnp.sqrt(a**2 + b**2)
    x_t = diffusion.forward(context.latents, normal(fold(context.keys, 1), context.latents.shape[1:]), a, b)
    found, flow, derivative = along_the_flow(
        context, context.differentiable_student, context.teacher(guidance), x_t / size, times
    )
    warmth = jnp.minimum(context.step / warmup, 1.0) if warmup else 1.0
    direction = tangent(x_t / size, found, flow, derivative, a, b, warmth)
    scale = jnp.sqrt(jnp.mean(direction**2, axis=(1, 2, 3, 4), keepdims=True))
    x0, eps = context.student(x_t, times, context.condition)
    value = follow((a * eps - b * x0) / size, lax.stop_gradient(-direction / (scale + FLOOR)))
    return value, {"consistency_tangent": scale.reshape(-1)}


continuous_consistency.needs = ("videos", "forward_mode")
