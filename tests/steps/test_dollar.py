import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from configs.shapes import get_config
from dollar_jax import diffusion
from dollar_jax.importing import UserError
from dollar_jax.steps import dollar

TEACHER = toy.TRANSFORMER.init(jax.random.key(5))
FROZEN = {"teacher": TEACHER, "null_text": jnp.zeros((1, 3, 2))}


def setup(**generator):
    config = get_config()
    config.generator.update({"iterations": 10, **generator})
    config.generator.optimizer.warmup = config.fake_score.optimizer.warmup = config.reward.optimizer.warmup = 0
    return dollar.Distillation(toy.TRANSFORMER, toy.REWARD_MODEL, "conjugate", diffusion.ddpm_schedule(), config)


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


def moved(before, after):
    """Names of the parts of the state that changed; the step number aside."""
    fields = {name: value for name, value in vars(before).items() if name not in ("step", "optimizers")}
    changed = {name for name in fields if not same(fields[name], getattr(after, name))}
    optimizers = {f"optimizer of {n}" for n in before.optimizers if not same(before.optimizers[n], after.optimizers[n])}
    return changed | optimizers


def test_everything_starts_as_the_teacher():
    state = setup().init(TEACHER, jax.random.key(0))
    assert same(state.student, TEACHER)
    assert same(state.ema, TEACHER)
    assert same(state.fake_score, TEACHER)
    assert state.student["mix"] is not TEACHER["mix"]  # a donated state must not take the teacher along


@pytest.mark.parametrize("rollout", ["data", "simulate"])
def test_each_step_moves_its_own_network_and_nothing_else(rollout):
    this = setup(rollout=rollout)
    state, batch, key = this.init(TEACHER, jax.random.key(0)), toy.batch(), jax.random.key(1)
    frozen = jax.tree.map(np.array, FROZEN)
    # An untouched fake score equals the teacher, and VSD's gradient is zero: move it first.
    after, _ = dollar.make_fake_score_step(this)(state, {}, batch, key)
    assert moved(state, after) == {"fake_score", "optimizer of fake_score"}
    assert int(after.step) == 0
    state = after

    after, metrics = dollar.make_generator_step(this)(state, FROZEN, batch, key)
    assert moved(state, after) == {"student", "ema", "optimizer of generator"}
    assert int(after.step) == 1
    assert {"loss/variational_score", "loss/consistency", "loss/latent_reward", "norm/student_gradient"} < set(metrics)
    weights = this.config.generator.objectives
    assert float(metrics["loss"]) == pytest.approx(
        sum(weight * float(metrics[f"loss/{name}"]) for name, weight in weights.items()), rel=1e-5
    )

    latents = dollar.make_proposal(this)(state, batch, key)
    np.testing.assert_array_equal(latents[::2], batch["latents"][::2])
    assert not np.array_equal(latents[1::2], batch["latents"][1::2])
    scored = {**batch, "latents": latents, "reward": jnp.arange(4.0)}
    after, _ = dollar.make_reward_step(this)(state, {}, scored, key)
    assert moved(state, after) == {"reward_model", "reward_statistics", "optimizer of reward"}
    assert same(FROZEN, frozen)


def test_the_student_follows_each_objective_alone():
    for objective, network in (("variational_score", "fake_score"), ("latent_reward", "reward_model")):
        this = setup(objectives={"variational_score": 0.0, "consistency": 0.0, "latent_reward": 0.0, objective: 1.0})
        state = this.init(TEACHER, jax.random.key(0))
        step = dollar.make_generator_step(this)
        changed = state.replace(**{network: jax.tree.map(lambda x: 1.1 * x + 0.1, getattr(state, network))})
        one, _ = step(state, FROZEN, toy.batch(), jax.random.key(1))
        other, metrics = step(changed, FROZEN, toy.batch(), jax.random.key(1))
        assert not same(one.student, other.student)
        assert {name for name in metrics if name.startswith("loss/")} == {f"loss/{objective}"}


def test_a_batch_in_pieces_has_the_gradient_of_the_whole():
    results = []
    for pieces in (1, 4):
        this = setup(accumulate=pieces)
        state = this.init(TEACHER, jax.random.key(0))
        state, fake = dollar.make_fake_score_step(this)(state, {}, toy.batch(8), jax.random.key(2))
        _, metrics = dollar.make_generator_step(this)(state, FROZEN, toy.batch(8), jax.random.key(1))
        metrics |= fake
        results.append([float(metrics[n]) for n in ("loss", "norm/student_gradient", "loss/fake_score")])
    np.testing.assert_allclose(*results, rtol=1e-5)


def test_steps_draw_new_noise_each_time_and_the_same_after_a_restart():
    this = setup()
    state, step = this.init(TEACHER, jax.random.key(0)), dollar.make_generator_step(this)
    first, metrics = step(state, FROZEN, toy.batch(), jax.random.key(1))
    again, _ = step(state, FROZEN, toy.batch(), jax.random.key(1))
    later, other = step(state.replace(step=state.step + 1), FROZEN, toy.batch(), jax.random.key(1))
    assert same(first.student, again.student)
    assert not same(first.student, later.student)
    assert float(metrics["loss"]) != float(other["loss"])


def test_a_heterogeneous_student_predicts_x0():
    this = setup(heterogeneous=True)
    assert (this.student_velocity, setup().student_velocity) == ("x0", "conjugate")
    keys = jax.random.split(jax.random.key(0), 4)
    one, other = (s.generate(TEACHER, toy.batch(), keys)[0] for s in (this, setup()))
    assert not np.allclose(one, other)


def test_samples_are_matched_between_their_time_and_the_students_next():
    keys = jax.random.split(jax.random.key(0), 64)
    first, end = setup().generate(TEACHER, toy.batch(64), keys)[1]
    spans = {(0, 250), (250, 500), (500, 750), (750, 1000)}
    assert set(zip(first.tolist(), end.tolist(), strict=True)) == spans


@pytest.mark.parametrize(("kind", "latest"), [("segment", (9, 9)), ("all", (900, 999))])
def test_the_fake_score_learns_at_the_matched_times(kind, latest):
    visited = []

    def spy(params, latents, times, text):
        if not isinstance(times, jax.core.Tracer):
            visited.extend(times.tolist())
        return toy.TRANSFORMER.apply(params, latents, times, text)

    this = setup(times=(9,), rollout="data", matched_times=kind)
    this = dataclasses.replace(this, network=toy.TRANSFORMER._replace(apply=spy))
    dollar.make_fake_score_step(this)(this.init(TEACHER, jax.random.key(0)), {}, toy.batch(64), jax.random.key(1))
    assert latest[0] <= max(visited) <= latest[1]


def test_running_statistics_are_those_of_all_rewards_so_far():
    rewards = np.random.default_rng(0).normal(3, 2, (5, 8)).astype(np.float32)
    statistics = dollar.RewardStatistics(*jnp.zeros(3))
    for part in rewards:
        statistics = statistics.add(jnp.asarray(part))
    wanted = (rewards[-1] - rewards.mean()) / rewards.std()
    np.testing.assert_allclose(statistics.normalize(jnp.asarray(rewards[-1])), wanted, rtol=1e-4)


def test_an_unknown_objective_is_named():
    with pytest.raises(UserError, match=r"hinge.*no module"):
        dollar.make_generator_step(setup(objectives={"hinge": 1.0}))


def test_an_objective_from_outside_the_package(tmp_path, monkeypatch):
    (tmp_path / "my_fork_losses.py").write_text(
        "import jax.numpy as jnp\n"
        "def shrink(context, *, power=2):\n"
        "    return jnp.mean(jnp.abs(context.generated) ** power, axis=(1, 2, 3, 4)), {'seen': 1.0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = setup()
    with config.config.generator.unlocked():
        config.config.generator.objectives = {"variational_score": 0.0}
        objectives = type(config.config)({"my_fork_losses:shrink": 2.0}, allow_dotted_keys=True)
        config.config.generator.objectives = objectives
        config.config.generator.options = type(config.config)(
            {"my_fork_losses:shrink": {"power": 1}}, allow_dotted_keys=True
        )
    state, batch = config.init(TEACHER, jax.random.key(0)), toy.batch()
    after, metrics = dollar.make_generator_step(config)(state, FROZEN, batch, jax.random.key(1))
    assert float(metrics["loss"]) == pytest.approx(2 * float(metrics["loss/my_fork_losses:shrink"]))
    assert float(metrics["seen"]) == 1
    assert "student" in moved(state, after)
