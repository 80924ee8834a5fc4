"""Flow-map (any-step) consistency: one network jumps from any time to any earlier one (AnyFlow, arXiv 2605.13724).

In flow coordinates z = x_t / (a + b) and tau = b / (a + b) every schedule is a rectified flow, dz / dtau = v with
v = eps - x0, and a student that predicts the mean velocity U(z, tau, rho) = (z_tau - z_rho) / (tau - rho) reaches z_rho
in one step. Differentiating along the flow gives the identity U = v - (tau - rho) dU / dtau. With rho = tau it is flow
matching, with rho = 0 continuous-time consistency, and with the data's velocity and a JVP MeanFlow (arXiv 2505.13447).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from dollar_jax import diffusion
from dollar_jax.diffusion import Coefficient, Schedule
from dollar_jax.errors import UserError
from dollar_jax.objectives.context import Context
from dollar_jax.objectives.denoising import squared_error
from dollar_jax.sampling import FlowMap, Keys, all_times, draw_times, fold, normal
from dollar_jax.types import Latent, PerExample, Times

STEP = 0.005  # of all training times, half the distance of a finite difference
FLOOR = 1e-3  # squared error below which `power` no longer matters


def target(velocity: Latent, derivative: Latent, distance: Coefficient) -> Latent:
    """v - (tau - rho) dU / dtau, the mean velocity that the identity asks for; `distance` is tau - rho."""
    return velocity - distance * derivative


def position(schedule: Schedule, times: Times) -> tuple[Coefficient, Coefficient]:
    """(tau, a + b) of times: tau = b / (a + b) in 0..1."""
    a, b = schedule.at(times)
    return b / (a + b), a + b


def draw_pairs(keys: Keys, schedule: Schedule) -> tuple[Times, Times]:
    """Times t and targets t' <= t. Half of the targets are t, a quarter are the clean end, and the others are between:
    then both are the larger and the smaller of two uniform draws.
    """
    every = all_times(schedule, len(keys))
    one, two = (draw_times(fold(keys, stream), schedule, every) for stream in (0, 1))
    which = jax.vmap(lambda key: jax.random.uniform(key))(fold(keys, 2))
    times = jnp.maximum(one, two)
    targets = jnp.where(which < 0.5, times, jnp.where(which < 0.75, schedule.clean, jnp.minimum(one, two)))
    return times, targets


def mean_velocity(context: Context, student: FlowMap, z: Latent, times: Times, targets: Times) -> Latent:
    """U(z, tau, rho) of the student."""
    _, size = position(context.schedule, times)
    x0, eps = student.towards(size * z, times, context.condition, targets)
    return eps - x0


def derivative_along(
    context: Context, z: Latent, times: Times, targets: Times, velocity: Latent, how: Literal["jvp", "difference"]
) -> Latent:
    """dU / dtau of the student along dz / dtau = v, with fixed targets.

    Raises:
      UserError: `how` has another value.
    """
    schedule = context.schedule
    student = context.differentiable_student if how == "jvp" else context.student

    def moved(z, times):
        return mean_velocity(context, student, z, times, targets)

    match how:
        case "jvp":
            speed = jax.jvp(lambda times: position(schedule, times)[0], (times,), (jnp.ones_like(times),))[1]
            return jax.jvp(moved, (z, times), (velocity, 1 / speed.reshape(-1)))[1]
        case "difference":
            reach = STEP * len(schedule.times)
            ends = [jnp.clip(times + sign * reach, schedule.clean, schedule.last) for sign in (-1, 1)]
            tau = position(schedule, times)[0]
            places = [position(schedule, end)[0] for end in ends]
            before, after = (moved(z + (place - tau) * velocity, end) for place, end in zip(places, ends, strict=True))
            return (after - before) / (places[1] - places[0])
        case _:
            raise UserError(f"flow_map: derivative is jvp or difference, not {how!r}")


def flow_map(
    context: Context,
    *,
    guidance: float = 0.0,
    velocity: Literal["teacher", "data"] = "teacher",
    derivative: Literal["jvp", "difference"] = "difference",
    power: float = 0.5,
) -> tuple[PerExample, dict]:
    """Squared error of U(z, tau, rho) and `target`, over (squared error + FLOOR)^power, at noised data. [b]

    Args:
      guidance: w of the teacher's velocity.
      velocity: v of the teacher, or eps - x0 of the data.
      derivative: jvp, or a central difference, which needs two calls of the student and any attention kernel. The
        difference divides the rounding of these calls by 2 `STEP`: in bfloat16 jvp has less noise.
      power: 0 for the squared error; .5 makes the gradients of all pairs equally large, as the targets of long steps
        are noisy.

    Raises:
      UserError: the student is no flow map, or an unknown velocity or derivative.
    """
    schedule = context.schedule
    if not isinstance(context.student, FlowMap):
        raise UserError("flow_map trains a student that is told where a step ends: set generator.flow_map=True")
    times, targets = draw_pairs(fold(context.keys, 0), schedule)
    # Right at the last time, the schedule's table has no derivative.
    times = jnp.minimum(times, schedule.last - 0.5)
    targets = jnp.minimum(targets, times)
    tau, size = position(schedule, times)
    noise = normal(fold(context.keys, 1), context.latents.shape[1:])
    z = diffusion.forward(context.latents, noise, *schedule.at(times)) / size
    match velocity:
        case "teacher":
            x0, eps = context.teacher(guidance)(size * z, times, context.condition)
        case "data":
            x0, eps = context.latents, noise
        case _:
            raise UserError(f"flow_map: velocity is teacher or data, not {velocity!r}")
    change = derivative_along(context, z, times, targets, eps - x0, derivative)
    wanted = lax.stop_gradient(target(eps - x0, change, tau - position(schedule, targets)[0]))
    error = squared_error(mean_velocity(context, context.student, z, times, targets), wanted)
    return error / lax.stop_gradient(error + FLOOR) ** power, {"flow_map_error": error}


flow_map.needs = ("videos", "forward_mode")
