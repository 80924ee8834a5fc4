"""DDPO_SF: the score-function policy gradient of a black-box reward (Eq. 26-28, Alg. 2)."""

import jax.numpy as jnp

from dollar_jax import diffusion
from dollar_jax.diffusion import Coefficient, Points, Schedule
from dollar_jax.errors import UserError
from dollar_jax.objectives.context import Context, Units, in_units
from dollar_jax.sampling import path_of
from dollar_jax.types import Latent, PerExample

GRID = 50  # steps of the paper's teacher; its first time ends a chain, since a step to the clean sample has no density


def path(times: Points, schedule: Schedule) -> Points:
    """Times of a chain with log-probabilities, descending: the student's times above the end, then the end."""
    end = schedule.spaced(GRID)[0]
    return (*(time for time in sorted(times, reverse=True) if time > end), end)


def log_probability(x: Latent, mean: Latent, deviation: Coefficient) -> PerExample:
    """log N(x; mean, deviation^2), the sum over elements (Eq. 28). [b]

    With a mean over elements, Eq. 26 would not be the gradient of E[R].
    """
    logs = -0.5 * (((x - mean) / deviation) ** 2 + jnp.log(2 * jnp.pi * deviation**2))
    return jnp.sum(logs, axis=(1, 2, 3, 4))


def posterior(
    x0: Latent, eps: Latent, a: Coefficient, b: Coefficient, a_next: Coefficient, b_next: Coefficient
) -> tuple[Latent, Coefficient]:
    """Mean and deviation of q(x_next | x_t, x0) (Eq. 27, corrected); the mean is an ancestral step without noise."""
    deviation = diffusion.posterior_deviation(a, b, a_next, b_next)
    return diffusion.reverse_step(x0, eps, jnp.zeros_like(x0), a_next, b_next, deviation), deviation


def policy_gradient(context: Context, *, steps: int = 2, units: Units = "raw") -> tuple[PerExample, dict]:
    """-(R - baseline) sum_n log p_theta(x_{n+1} | x_n) over the last transitions of a trajectory (Alg. 2, line 13). [b]

    Its gradient estimates -dE[R] / dtheta, through these transitions. The baseline is the running mean of the prompt's
    rewards, as in DDPO (arXiv 2305.13301): it leaves the expected gradient unchanged and removes the differences
    between prompts from its noise.

    Args:
      steps: largest number of transitions, the paper's truncation N.
      units: raw, or deviations of the reward.

    Raises:
      UserError: `steps` is less than 1, or unknown units.
    """
    if steps < 1:
        raise UserError(f"policy_gradient: steps={steps}, wanted 1 or more transitions")
    times, total = path(context.times, context.schedule), 0.0
    for index in range(max(len(times) - 1 - steps, 0), len(times) - 1):
        here, there = path_of(times[index : index + 2], len(context.latents))
        x_t, x_next = context.trajectory[:, index], context.trajectory[:, index + 1]
        x0, eps = context.student(x_t, here, context.condition)
        mean, deviation = posterior(x0, eps, *context.schedule.at(here), *context.schedule.at(there))
        total += log_probability(x_next, mean, deviation)
    advantage = in_units(context.advantage, context.deviation, units)
    return -advantage * total, {"log_probability": total, "reward_trajectory": context.reward}


policy_gradient.needs = ("trajectory",)
