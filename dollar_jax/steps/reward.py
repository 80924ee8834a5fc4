"""Training of the latent reward model on true rewards (Alg. 1, lines 16-18): statistics, replay, step function.

Also the baselines of a policy gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

from dollar_jax.models.network import Network
from dollar_jax.objectives.latent_reward import reward_regression
from dollar_jax.steps.common import mean_gradient, update
from dollar_jax.types import Condition, Key, Leaf, Params, PerExample

PARTS = ("latents", "condition", "reward")  # fields of a scored batch
PROMPTS = 2**16  # rows of baselines; prompts that share a row share a baseline, which leaves the gradient unbiased
MEMORY = 32  # number of videos that a prompt's mean covers; older ones fade, since the student changes


@struct.dataclass
class RewardStatistics:
    """Running count, mean and sum of squared deviations of the true reward (Welford's algorithm).

    The reward model learns (R - mean) / deviation.
    """

    count: Leaf
    mean: Leaf
    squares: Leaf

    @property
    def deviation(self) -> jax.Array:
        """The running standard deviation; a little above zero even before the first reward."""
        return jnp.sqrt(self.squares / jnp.maximum(self.count, 1) + 1e-12)

    def normalize(self, reward: PerExample) -> PerExample:
        """(R - mean) / deviation [b]."""
        return (reward - self.mean) / self.deviation

    def restore(self, normalized: PerExample) -> PerExample:
        """The inverse of `normalize`."""
        return normalized * self.deviation + self.mean

    def add(self, reward: PerExample) -> "RewardStatistics":
        """The statistics after another batch of rewards."""
        count = self.count + reward.shape[0]
        shift = reward.mean() - self.mean
        squares = self.squares + jnp.sum((reward - reward.mean()) ** 2)
        squares += shift**2 * self.count * reward.shape[0] / count
        return RewardStatistics(count, self.mean + shift * reward.shape[0] / count, squares)


@struct.dataclass
class PromptMeans:
    """Mean reward of the last videos of each prompt, the baseline of DDPO (arXiv 2305.13301)."""

    count: Leaf  # [PROMPTS], at most about MEMORY
    mean: Leaf  # [PROMPTS]

    @classmethod
    def empty(cls) -> "PromptMeans":
        """The means before the first video."""
        return cls(jnp.zeros(PROMPTS), jnp.zeros(PROMPTS))

    def baseline(self, prompts: Int[Array, " b"], mean: jax.Array) -> PerExample:
        """Baselines [b] of the prompts with these numbers; `mean` of all rewards counts as one more video of each."""
        count = self.count[prompts]
        return (count * self.mean[prompts] + mean) / (count + 1)

    def add(self, prompts: Int[Array, " b"], reward: PerExample) -> "PromptMeans":
        """The means after another batch of rewards."""
        new = jnp.zeros_like(self.count).at[prompts].add(1)
        total = jnp.zeros_like(self.mean).at[prompts].add(reward)
        kept = jnp.minimum(self.count, jnp.maximum(MEMORY - new, 0))
        count = kept + new
        return PromptMeans(count, (kept * self.mean + total) / jnp.maximum(count, 1))


@struct.dataclass
class Replay:
    """A ring buffer of scored latents from the last batches.

    The reward model learns several times from a reward that is slow to compute, and does not forget samples that the
    student no longer makes.

    Attributes:
      rows: arrays [n, ...] with the names `PARTS`.
      count: number of rows that were ever added.
    """

    rows: dict[str, Any]
    count: Leaf

    @classmethod
    def empty(cls, size: int, latents: Leaf, condition: Condition) -> "Replay":
        """An empty buffer for `size` rows; `latents` and `condition` are ShapeDtypeStructs with b = 1."""
        example = {"latents": latents, "condition": condition, "reward": jax.ShapeDtypeStruct((1,), jnp.float32)}

        def room(x):
            dtype = x.dtype if x.dtype == bool else jnp.float32
            return jnp.zeros((size, *x.shape[1:]), dtype)

        return cls(jax.tree.map(room, example), jnp.zeros((), jnp.int32))

    def add(self, batch: dict) -> "Replay":
        """The buffer with a batch in place of the oldest rows; the size of the batch divides that of the buffer."""
        size = batch["reward"].shape[0]
        start = self.count % self.rows["reward"].shape[0]

        def put(rows, new):
            return jax.lax.dynamic_update_slice_in_dim(rows, new.astype(rows.dtype), start, 0)

        return Replay(jax.tree.map(put, self.rows, batch), self.count + size)

    def draw(self, key: Key, size: int) -> dict:
        """Draws `size` of the added rows, uniformly with replacement."""
        chosen = jax.random.randint(key, (size,), 0, jnp.minimum(self.count, self.rows["reward"].shape[0]))
        return jax.tree.map(lambda rows: rows[chosen], self.rows)


def make_reward_step(network: Network, optimizer: optax.GradientTransformation, videos: bool = True) -> Callable:
    """Makes the step (state, frozen, batch, key) -> (state, metrics) of the latent reward model, Eq. 14.

    videos: whether every second row is a clip of the data, see `dollar.make_proposal`.
    batch: {'latents', 'condition', 'reward'}: latents and the true reward [b] of their videos. With a replay the step
      also learns from b rows of it.
    """

    def step(state, frozen: Params, batch: dict, key: Key):
        del frozen  # a regression: nothing frozen
        statistics, replay = state.reward_statistics.add(batch["reward"]), state.replay
        learnt = {name: batch[name] for name in PARTS}
        if replay is not None:
            replay = replay.add(learnt)
            drawn = replay.draw(jax.random.fold_in(key, replay.count), batch["reward"].shape[0])
            learnt = jax.tree.map(lambda new, old: jnp.concatenate([new.astype(old.dtype), old]), learnt, drawn)

        def loss(params, part):
            apply = jax.named_scope("reward_model")(network.apply)
            estimate = apply(params, part["latents"], part["condition"])
            metrics = {"reward_correlation": correlation(estimate, part["reward"])}
            return reward_regression(estimate, statistics.normalize(part["reward"])), metrics

        gradient, metrics = mean_gradient(loss, state.reward_model, learnt, 1)
        reward_model, optimizer_state, norms = update(
            optimizer, gradient, state.optimizers["reward"], state.reward_model, "reward_model", metrics["loss"]
        )
        state = state.replace(
            reward_model=reward_model,
            reward_statistics=statistics,
            replay=replay,
            optimizers=state.optimizers | {"reward": optimizer_state},
        )
        rewards = {"reward_student": batch["reward"].mean()}
        if videos:
            rewards = {"reward_data": batch["reward"][::2].mean(), "reward_student": batch["reward"][1::2].mean()}
        extra = {"loss/reward_model": metrics["loss"], "reward_correlation": metrics["reward_correlation"]}
        return state, extra | rewards | norms

    return step


def correlation(x: PerExample, y: PerExample) -> jax.Array:
    """Pearson's correlation of two [b]; 0 if one is constant."""
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / jnp.maximum(jnp.sqrt((x**2).sum() * (y**2).sum()), 1e-12)
