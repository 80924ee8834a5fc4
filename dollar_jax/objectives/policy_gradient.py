"""Score-function policy gradients of a black-box reward: DDPO_SF (Eq. 26-28, Alg. 2) and, with groups, GRPO."""

from collections.abc import Iterator

import jax.numpy as jnp
from einops import rearrange

from dollar_jax import diffusion
from dollar_jax.diffusion import Coefficient, Points, Schedule
from dollar_jax.errors import UserError
from dollar_jax.objectives.context import Context, Units, in_units
from dollar_jax.sampling import path_of
from dollar_jax.types import Latent, PerExample, Times

CLIP = 5.0  # of a group's advantage
TINY = 1e-6  # deviation below which a group's rewards count as equal
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


def last_transitions(context: Context, steps: int) -> Iterator[tuple[Latent, Latent, Times, Times]]:
    """(x_n, x_{n+1}, time of x_n, time of x_{n+1}) of the last `steps` transitions of `context.trajectories`.

    Raises:
      UserError: `steps` is less than 1.
    """
    if steps < 1:
        raise UserError(f"a chain's last steps={steps} transitions: wanted 1 or more")
    states, times = context.trajectories.states, path(context.times, context.schedule)
    for index in range(max(len(times) - 1 - steps, 0), len(times) - 1):
        yield states[:, index], states[:, index + 1], *path_of(times[index : index + 2], len(states))


def group_advantage(reward: PerExample, group: int) -> PerExample:
    """(R - mean) / deviation within each `group` of neighbours, clipped to -5..5; 0 where all rewards are equal. [b]"""
    groups = rearrange(reward, "(n group) -> n group", group=group)
    above = groups - groups.mean(axis=1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(above**2, axis=1, keepdims=True))
    return jnp.clip(above / jnp.maximum(deviation, TINY), -CLIP, CLIP).reshape(-1)


def policy_gradient(
    context: Context, *, steps: int = 2, units: Units = "raw", group: int = 1
) -> tuple[PerExample, dict]:
    """-(R - baseline) sum_n log p_theta(x_{n+1} | x_n) over the last transitions of a trajectory (Alg. 2, line 13). [b]

    Its gradient estimates -dE[R] / dtheta, through these transitions. The baseline is the running mean of the prompt's
    rewards, as in DDPO (arXiv 2305.13301): it leaves the expected gradient unchanged and removes the differences
    between prompts from its noise.

    Args:
      steps: largest number of transitions, the paper's truncation N.
      units: raw, or deviations of the reward.
      group: number of trajectories of each caption. From 2 on the advantage is `group_advantage`, as in Flow-GRPO
        (arXiv 2505.05470) and DanceGRPO (2505.07818), and of a group of rows only the first one's caption is taken.
        Trajectories are used for one update, so the ratio of policies is 1 and needs no clipping.

    Raises:
      UserError: `steps` or `group` is less than 1, unknown units, or deviations of a reward in groups.
    """
    if group < 1:
        raise UserError(f"policy_gradient: group={group}, wanted 1 or more")
    if group > 1 and units != "raw":
        raise UserError("policy_gradient: a group's advantage is in its own deviations already: remove units")
    drawn, total = context.trajectories, 0.0
    for x_t, x_next, here, there in last_transitions(context, steps):
        x0, eps = context.student(x_t, here, drawn.condition)
        mean, deviation = posterior(x0, eps, *context.schedule.at(here), *context.schedule.at(there))
        total += log_probability(x_next, mean, deviation)
    advantage = in_units(drawn.advantage, context.deviation, units)
    return -advantage * total, {"log_probability": total, "reward_trajectory": drawn.reward}


policy_gradient.needs = ("trajectory",)
