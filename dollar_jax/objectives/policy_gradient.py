"""DDPO_SF: the score-function policy gradient of a black-box reward (Eq. 26-28, Alg. 2)."""

from collections.abc import Sequence

import jax.numpy as jnp

from dollar_jax import diffusion
from dollar_jax.diffusion import Coefficient
from dollar_jax.notation import Latent, PerExample
from dollar_jax.objectives.context import Context

END = 19  # the first of the teacher's 50 times: a step to the clean sample has no deviation, and no log-probability


def path(times: Sequence[int]) -> tuple[int, ...]:
    """The times that a chain with log-probabilities visits: the student's, then `END`."""
    return (*sorted(times, reverse=True), END)


def log_probability(x: Latent, mean: Latent, deviation: Coefficient) -> PerExample:
    """log N(x; mean, deviation^2) (Eq. 28), a mean over elements, so that weights mean the same at every size. [b]"""
    logs = -0.5 * (((x - mean) / deviation) ** 2 + jnp.log(2 * jnp.pi * deviation**2))
    return jnp.mean(logs, axis=(1, 2, 3, 4))


def posterior(
    x0: Latent, eps: Latent, a: Coefficient, b: Coefficient, a_next: Coefficient, b_next: Coefficient
) -> tuple[Latent, Coefficient]:
    """Mean and deviation of q(x_next | x_t, x0) (Eq. 27, corrected): an ancestral step without its noise."""
    deviation = diffusion.posterior_deviation(a, b, a_next, b_next)
    return diffusion.reverse_step(x0, eps, jnp.zeros_like(x0), a_next, b_next, deviation), deviation


def policy_gradient(context: Context, *, steps: int = 2, normalize: bool = False) -> tuple[PerExample, dict]:
    """-R sum_n log p_theta(x_{n+1} | x_n) over the last `steps` transitions of the trajectory (Alg. 2, line 13). [b]

    Args:
      steps: the paper's truncation N; 2.
      normalize: take the reward in running deviations from its running mean, which leaves the gradient's expectation
        in its direction and lowers its variance; the paper takes it as it is.
    """
    times, total = path(context.times), 0.0
    for index in range(len(times) - 1 - steps, len(times) - 1):
        here, there = (jnp.full(len(context.text), time) for time in times[index : index + 2])
        x_t, x_next = context.trajectory[:, index], context.trajectory[:, index + 1]
        x0, eps = context.student(x_t, here, context.text)
        mean, deviation = posterior(x0, eps, *context.schedule.at(here), *context.schedule.at(there))
        total += log_probability(x_next, mean, deviation)
    reward = context.normalized_reward if normalize else context.reward
    return -reward * total, {"log_probability": total, "reward_trajectory": context.reward}


policy_gradient.needs = ("trajectory",)
