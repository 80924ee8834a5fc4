"""DRaFT-K (arXiv 2309.17400): the reward's gradient through the decoder and the last K steps of a whole chain."""

from dollar_jax.objectives.context import Context
from dollar_jax.types import PerExample


def draft(context: Context, *, steps: int = 1) -> tuple[PerExample, dict]:
    """-R(Dec(x0)) at the end of the student's chain from pure noise. [b]

    Args:
      steps: K, number of calls of the network, from the end, that have a gradient.
    """
    reward = context.pixel_reward(context.sample(steps))
    return -reward, {"pixel_reward": reward}


draft.needs = ("pixel_reward",)
