"""Divergence of a student that learns from a reward from the student that it was at the start of the run."""

import jax.numpy as jnp

from dollar_jax.diffusion import Coefficient
from dollar_jax.objectives.context import Context
from dollar_jax.objectives.policy_gradient import last_transitions, posterior
from dollar_jax.types import Latent, PerExample


def divergence(mean: Latent, other: Latent, deviation: Coefficient) -> PerExample:
    """KL(N(mean, deviation^2) || N(other, deviation^2)) = |mean - other|^2 / (2 deviation^2). [b]"""
    return jnp.sum(((mean - other) / deviation) ** 2, axis=(1, 2, 3, 4)) / 2


def start_divergence(context: Context, *, steps: int = 2) -> tuple[PerExample, dict]:
    """sum_n KL(p_theta(x_{n+1} | x_n) || p_start(x_{n+1} | x_n)) over a policy gradient's last transitions. [b]

    The states x_n are those of the current student, so this is the divergence of the two chains from x_N on, the KL
    term of Flow-GRPO (arXiv 2505.05470). Its weight, relative to that of `policy_gradient`, is beta.

    Args:
      steps: number of transitions, that of `policy_gradient`.
    Raises:
      UserError: `steps` is less than 1.
    """
    total, told = 0.0, context.trajectories.condition
    for x_t, _, here, there in last_transitions(context, steps):
        coefficients = *context.schedule.at(here), *context.schedule.at(there)
        mean, deviation = posterior(*context.student(x_t, here, told), *coefficients)
        other, _ = posterior(*context.start(x_t, here, told), *coefficients)
        total += divergence(mean, other, deviation)
    return total, {}


start_divergence.needs = ("trajectory", "start")
