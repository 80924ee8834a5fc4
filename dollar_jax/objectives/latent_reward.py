"""Latent reward models: their regression on the true reward (Eq. 14), and fine-tuning with them (Eq. 15)."""

from dollar_jax.objectives.context import Context, Units, in_units
from dollar_jax.types import PerExample


def reward_regression(estimate: PerExample, reward: PerExample) -> PerExample:
    """Squared error (R(Dec(x)) - R_phi(x))^2 of the latent reward model (Eq. 14). [b]"""
    return (reward - estimate) ** 2


def latent_reward(context: Context, *, units: Units = "raw") -> tuple[PerExample, dict]:
    """Negative estimated reward -R_phi(G(eps)) of the generated latents (Eq. 15). [b]

    Args:
      units: raw, as in the paper, or deviations of the reward, which makes weights comparable between rewards.

    Raises:
      UserError: unknown units.
    """
    estimate = context.reward_model(context.generated, context.condition)
    return -in_units(estimate, context.deviation, units), {"latent_reward_estimate": estimate}


latent_reward.needs = ("reward_model",)
