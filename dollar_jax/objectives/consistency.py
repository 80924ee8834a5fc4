"""Consistency distillation over m teacher steps (Eq. 6-9)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from dollar_jax import diffusion
from dollar_jax.diffusion import Coefficient, Schedule
from dollar_jax.errors import UserError
from dollar_jax.objectives.context import Context
from dollar_jax.sampling import fold, normal, solve
from dollar_jax.types import Latent, PerExample, Times

SHARPNESS, DEVIATION = 10.0, 0.5  # of LCM's boundary
DELTA = 1e-3  # of pseudo-Huber: LCM's


def boundary(schedule: Schedule, times: Times) -> tuple[Coefficient, Coefficient]:
    """LCM's boundary coefficients c_skip and c_out of f = c_skip x_t + c_out x0. Each [b 1 1 1 1].

    c_skip = d^2 / (s^2 + d^2), c_out = s / sqrt(s^2 + d^2), d = `DEVIATION`, s = 1000 `SHARPNESS` (t - clean) / T for T
    training times. So f(x, clean) = x exactly, and f is nearly x0 soon above the clean time.
    """
    scaled = SHARPNESS * 1000 / len(schedule.times) * (times[:, None, None, None, None] - schedule.clean)
    square = scaled**2 + DEVIATION**2
    return DEVIATION**2 / square, scaled / jnp.sqrt(square)


def distance(f: Latent, target: Latent, metric: Literal["mse", "huber"]) -> PerExample:
    """Distance d of Eq. 6, a mean over elements: squared error, or pseudo-Huber sqrt(x^2 + d^2) - d, d = `DELTA`. [b]

    Raises:
      UserError: unknown metric.
    """
    square = (f - target) ** 2
    match metric:
        case "mse":
            values = square
        case "huber":
            values = jnp.sqrt(square + DELTA**2) - DELTA
        case _:
            raise UserError(f"consistency: metric is mse or huber, not {metric!r}")
    return jnp.mean(values, axis=(1, 2, 3, 4))


def consistency(
    context: Context,
    *,
    steps: int = 5,
    grid: int = 50,
    guidance: float = 7.5,
    target: Literal["teacher", "ema", "student"] = "teacher",
    metric: Literal["mse", "huber"] = "mse",
) -> tuple[PerExample, dict]:
    """Consistency loss d(f_theta(x_{t_{n+m}}, t_{n+m}), f_theta'(Denoise^m(x_{t_{n+m}}), t_n)) (Eq. 6, 7). [b]

    Args:
      steps: m, number of the teacher's DDIM steps between the two times; fewer if they reach the clean time.
      grid: N; the times are `schedule.spaced(N)` and the clean time.
      guidance: w of the teacher in Denoise^m, and in the target if the target is the teacher.
      target: network of the target f_theta': teacher (Eq. 6 as printed), ema for the student's average (LCM), or
        student, without gradient.
      metric: mse or huber.

    Raises:
      UserError: unknown target or metric.
    """
    schedule = context.schedule
    times = jnp.asarray((schedule.clean, *schedule.spaced(grid)), jnp.float32)
    start = jax.vmap(lambda key: jax.random.randint(key, (), 1, grid + 1))(fold(context.keys, 0))
    path = times[jnp.maximum(start[None] - jnp.arange(steps + 1)[:, None], 0)]
    noise = normal(fold(context.keys, 1), context.latents.shape[1:])
    x_start = diffusion.forward(context.latents, noise, *schedule.at(path[0]))

    def f(denoise, x_t, times):
        c_skip, c_out = boundary(schedule, times)
        return c_skip * x_t + c_out * denoise(x_t, times, context.condition)[0]

    teacher = context.teacher(guidance)
    match target:
        case "teacher":
            other = teacher
        case "ema":
            other = context.ema
        case "student":
            other = context.student
        case _:
            raise UserError(f"consistency: target is teacher, ema or student, not {target!r}")
    x_end, _ = solve(teacher, x_start, context.condition, path, schedule, "ddim", context.keys)
    wanted = lax.stop_gradient(f(other, x_end, path[-1]))
    return distance(f(context.student, x_start, path[0]), wanted, metric), {}


consistency.needs = ("videos",)
