"""Eq. 4: the diffusion loss, on data for the teacher and on the student's samples for the fake score."""

from collections.abc import Callable

import jax.numpy as jnp

from dollar_jax import diffusion
from dollar_jax.diffusion import Schedule, Velocity
from dollar_jax.notation import Latent, PerExample, Text, Times
from dollar_jax.objectives.context import Context
from dollar_jax.sampling import Keys, draw_times, fold, normal


def velocity_loss(velocity: Latent, target: Latent) -> PerExample:
    """||v_theta(x_t, t) - v||^2, a mean over elements (Eq. 4; v = x0 - eps for the conjugate kind). [b]"""
    return jnp.mean((velocity - target) ** 2, axis=(1, 2, 3, 4))


def velocity_matching(
    network: Callable[[Latent, Times, Text], Latent],
    kind: Velocity,
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
    return velocity_loss(velocity, diffusion.from_x0_eps(kind, x0, eps, a, b))


def velocity(context: Context, *, kind: Velocity = "conjugate") -> tuple[PerExample, dict]:
    """Eq. 4 on data for the network in training: what holds a teacher while it is tuned for a reward. [b]"""
    count = context.schedule.signal.shape[0] - 1
    size = len(context.text)
    times = draw_times(fold(context.keys, 0), (jnp.zeros(size, jnp.int32), jnp.full(size, count)))

    def network(x_t, times, text):
        return diffusion.from_x0_eps(kind, *context.student(x_t, times, text), *context.schedule.at(times))

    return (
        velocity_matching(network, kind, context.schedule, context.latents, times, context.text, fold(context.keys, 1)),
        {},
    )


velocity.needs = ()
