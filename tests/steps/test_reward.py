import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from test_dollar import setup

from dollar_jax.steps.reward import MEMORY, PromptMeans, Replay, RewardStatistics, correlation, make_reward_step

EXAMPLE = toy.batch(1)["latents"], toy.batch(1)["condition"]


def scored(size, seed=0):
    batch = toy.batch(size, seed)
    return batch | {"reward": batch["latents"].mean((1, 2, 3, 4)) * 10 + 5}


def test_running_statistics_are_those_of_all_rewards_so_far():
    rewards = np.random.default_rng(0).normal(3, 2, (5, 8)).astype(np.float32)
    statistics = RewardStatistics(*jnp.zeros(3))
    for part in rewards:
        statistics = statistics.add(jnp.asarray(part))
    wanted = (rewards[-1] - rewards.mean()) / rewards.std()
    normalized = statistics.normalize(jnp.asarray(rewards[-1]))
    np.testing.assert_allclose(normalized, wanted, rtol=1e-4)
    np.testing.assert_allclose(statistics.restore(normalized), rewards[-1], rtol=1e-5)


def test_statistics_of_nothing_are_finite():
    statistics = RewardStatistics(*jnp.zeros(3))
    assert float(statistics.restore(jnp.ones(2))[0]) == pytest.approx(0, abs=1e-5)
    assert float(statistics.deviation) > 0


def test_a_prompts_baseline_is_the_mean_of_its_earlier_rewards_and_of_all():
    prompts, rewards = jnp.array([7, 7, 3]), jnp.array([1.0, 2.0, 5.0])
    means = PromptMeans.empty()
    np.testing.assert_allclose(means.baseline(prompts, jnp.float32(0.5)), 0.5)  # nothing of them is known
    means = means.add(prompts, rewards)
    baseline = means.baseline(jnp.array([7, 3, 4]), jnp.float32(0.5))
    np.testing.assert_allclose(baseline, [(1 + 2 + 0.5) / 3, (5 + 0.5) / 2, 0.5], rtol=1e-6)
    means = means.add(jnp.array([7]), jnp.array([6.0]))
    np.testing.assert_allclose(means.baseline(jnp.array([7]), jnp.float32(0.0)), [9 / 4], rtol=1e-6)


def test_a_baseline_forgets():
    """A student that has changed is compared with what it has become; one batch of many videos is taken whole."""
    means, prompt = PromptMeans.empty(), jnp.zeros(MEMORY, jnp.int32)
    means = means.add(prompt, jnp.ones(MEMORY)).add(prompt, jnp.full(MEMORY, 3.0))
    assert float(means.mean[0]) == 3
    after = means.add(prompt[:1], jnp.array([3.0 + MEMORY]))
    assert float(after.mean[0]) == pytest.approx(4)
    many = jnp.zeros(4 * MEMORY, jnp.int32)
    assert float(means.add(many, jnp.full(4 * MEMORY, 7.0)).mean[0]) == 7


def test_a_replay_keeps_the_newest_and_draws_only_what_came_in():
    replay = Replay.empty(8, *EXAMPLE)
    batches = [scored(4, seed) for seed in range(3)]
    replay = replay.add(batches[0])
    drawn = replay.draw(jax.random.key(0), 64)
    assert set(np.unique(drawn["reward"])) == set(np.unique(batches[0]["reward"]))
    replay = replay.add(batches[1]).add(batches[2])
    kept = np.concatenate([batches[2]["reward"], batches[1]["reward"]])
    np.testing.assert_array_equal(replay.rows["reward"], kept)
    np.testing.assert_array_equal(replay.rows["latents"][:4], batches[2]["latents"])
    drawn = replay.draw(jax.random.key(0), 256)
    assert set(np.unique(drawn["reward"])) == set(np.unique(kept))
    rows = [int(np.flatnonzero(kept == value)[0]) for value in np.asarray(drawn["reward"])]
    np.testing.assert_array_equal(drawn["latents"], np.asarray(replay.rows["latents"])[rows])


@pytest.mark.parametrize("size", [0, 8])
def test_the_reward_model_learns_the_rewards_of_latents(size):
    """A model that can represent the reward finds it, with a replay and without."""
    this = setup()
    state = this.init(toy.TRANSFORMER.init(jax.random.key(5)), jax.random.key(0))
    optimizer = optax.adam(0.05)
    replay = Replay.empty(size, *EXAMPLE) if size else None
    state = state.replace(replay=replay, optimizers=state.optimizers | {"reward": optimizer.init(state.reward_model)})
    step = jax.jit(make_reward_step(toy.REWARD_MODEL, optimizer))
    for seed in range(150):
        batch = toy.batch(4, seed)
        reward = 3 + 2 * jnp.tanh(batch["latents"]).mean((1, 2, 3)) @ jnp.array([1.0, -1.0, 2.0, 0.5])
        state, metrics = step(state, {}, batch | {"reward": reward}, jax.random.key(7))
    assert metrics["loss/reward_model"] < 0.05
    assert metrics["reward_correlation"] > 0.98
    assert (state.replay is None) == (size == 0)


def test_correlation():
    x = jnp.array([1.0, 2.0, 4.0])
    assert float(correlation(x, 3 - 2 * x)) == pytest.approx(-1)
    assert float(correlation(x, jnp.ones(3))) == 0
    y = jnp.array([0.3, -1.0, 0.7])
    assert float(correlation(x, y)) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
