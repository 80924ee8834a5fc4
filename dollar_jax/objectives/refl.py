"""ReFL (arXiv 2304.05977): the reward's gradient through the decoder and one step of the student."""

from dollar_jax.objectives.context import Context
from dollar_jax.types import PerExample


def refl(context: Context) -> tuple[PerExample, dict]:
    """-R(Dec(x0)) of the one-step x0 at one of the student's times; the steps before have no gradient. [b]"""
    reward = context.pixel_reward(context.generated)
    return -reward, {"pixel_reward": reward}


refl.needs = ("pixel_reward",)
