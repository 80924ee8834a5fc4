import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from configs.shapes import get_config
from dollar_jax import diffusion
from dollar_jax.config import set_named
from dollar_jax.errors import UserError
from dollar_jax.sampling import fold, normal, path_of, solve
from dollar_jax.sharding import make_mesh
from dollar_jax.steps import dollar
from dollar_jax.steps.common import example_keys
from dollar_jax.steps.distillation import Distillation
from dollar_jax.steps.iteration import compiled, parts
from dollar_jax.steps.reward import MEMORY, RewardStatistics, make_reward_step
from dollar_jax.train import initialize

TEACHER = toy.TRANSFORMER.init(jax.random.key(5))
FROZEN = {"teacher": TEACHER, "negative": toy.condition(1, 3, 2), "empty": toy.condition(1, 3, 2)}


def setup(objectives=None, **generator):
    config = get_config()
    set_named(config.generator.objectives, objectives or {})
    config.generator.update({"iterations": 10, **generator})
    config.generator.optimizer.warmup = config.fake_score.optimizer.warmup = config.reward.optimizer.warmup = 0
    schedule = diffusion.ddpm_schedule()
    return Distillation(toy.TRANSFORMER, toy.REWARD_MODEL, "conjugate", schedule, config, toy.LATENT_SHAPE)


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
    weighed = [one.weight * float(metrics[f"loss/{one.name}"]) for one in this.objectives]
    assert float(metrics["loss"]) == pytest.approx(sum(weighed), rel=1e-5)

    proposed = dollar.make_proposal(this)(state, FROZEN, batch, key)
    scored = {**proposed, "reward": jnp.arange(8.0)}
    after, _ = make_reward_step(toy.REWARD_MODEL, this.optimizer("reward"))(state, {}, scored, key)
    assert moved(state, after) == {"reward_model", "reward_statistics", "optimizer of reward"}
    assert same(FROZEN, frozen)


def test_the_student_follows_each_objective_alone():
    for objective, network in (("variational_score", "fake_score"), ("latent_reward", "reward_model")):
        this = setup({"variational_score": 0.0, "consistency": 0.0, "latent_reward": 0.0, objective: 1.0})
        state = this.init(TEACHER, jax.random.key(0))
        step = dollar.make_generator_step(this)
        changed = state.replace(**{network: jax.tree.map(lambda x: 1.1 * x + 0.1, getattr(state, network))})
        one, _ = step(state, FROZEN, toy.batch(), jax.random.key(1))
        other, metrics = step(changed, FROZEN, toy.batch(), jax.random.key(1))
        assert not same(one.student, other.student)
        assert {name for name in metrics if name.startswith("loss/")} == {f"loss/{objective}"}


FAKE_SCORE = dollar.make_fake_score_step, ("loss/fake_score", "norm/fake_score_gradient")


@pytest.mark.parametrize(
    ("make", "names", "shared"),
    [(dollar.make_generator_step, ("loss", "norm/student_gradient"), 1), (*FAKE_SCORE, 1), (*FAKE_SCORE, 2)],
)
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(make, names, shared):
    """In 7, as the paper accumulates."""
    results = []
    for pieces in (1, 7):
        this = setup(accumulate=pieces)
        this.config.fake_score.updates_per_rollout = shared
        state = this.init(TEACHER, jax.random.key(0))
        # An untouched fake score equals the teacher, and VSD's gradient is zero.
        state = state.replace(fake_score=jax.tree.map(lambda x: 1.1 * x + 0.1, state.fake_score))
        _, metrics = jax.jit(make(this))(state, FROZEN, toy.batch(14), jax.random.key(1))
        results.append([float(metrics[name]) for name in names])
    np.testing.assert_allclose(*results, rtol=1e-6)


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
    assert (this.student_prediction_type, setup().student_prediction_type) == ("x0", "conjugate")
    keys = jax.random.split(jax.random.key(0), 4)
    one, other = (s.generate(TEACHER, toy.batch(), keys)[0] for s in (this, setup()))
    assert not np.allclose(one, other)


def test_samples_are_matched_between_their_time_and_the_students_next():
    keys = jax.random.split(jax.random.key(0), 64)
    after, upto = setup().generate(TEACHER, toy.batch(64), keys)[1]
    spans = {(-1, 249), (249, 499), (499, 749), (749, 999)}
    assert set(zip(after.tolist(), upto.tolist(), strict=True)) == spans


@pytest.mark.parametrize("sampler", ["ddim", "renoise"])
def test_noise_is_added_to_the_state_that_the_sampler_visits_next(sampler):
    """To check it, the whole chain is run from the same noise."""
    this = setup(matched_times="trajectory", sampler=sampler)
    keys, batch = jax.random.split(jax.random.key(0), 64), toy.batch(64)
    sample = this.generate(TEACHER, batch, keys)
    path = path_of([999, 749, 499, 249, -1], 64)
    noise = normal(fold(keys, 1), toy.LATENT_SHAPE)
    last, visited = solve(this.denoiser(TEACHER), noise, batch["condition"], path, this.schedule, "ddim", keys)
    chain = jnp.concatenate([visited, last[None]])
    nth = (999 - sample.at.astype(int)) // 250
    assert set(nth.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(sample.state_at, path[nth + 1, 0])
    same_state = np.isclose(sample.state, chain[nth + 1, np.arange(64)], atol=1e-5).all((1, 2, 3, 4))
    ends = sample.state_at == -1  # of which the sample is the state
    np.testing.assert_array_equal(sample.state[ends], sample.x0[ends])
    if sampler == "ddim":
        assert same_state.all()
    else:
        assert not same_state.any()
        first = nth == 0
        a, b = this.schedule.at(jnp.array([749.0]))
        fresh = ((sample.state - a * sample.x0) / b)[first]
        assert float(fresh.std()) == pytest.approx(1, abs=0.15)
        assert abs(np.corrcoef(fresh.ravel(), noise[first].ravel())[0, 1]) < 0.2


@pytest.mark.parametrize(("kind", "latest"), [("segment", (9, 9)), ("trajectory", (9, 9)), ("all", (900, 999))])
def test_the_fake_score_learns_at_the_matched_times(kind, latest):
    visited = []

    def spy(params, latents, times, condition):
        if not isinstance(times, jax.core.Tracer):
            visited.extend(times.tolist())
        return toy.TRANSFORMER.apply(params, latents, times, condition)

    this = setup(times=(9,), rollout="data", matched_times=kind)
    this = dataclasses.replace(this, network=toy.TRANSFORMER._replace(apply=spy))
    dollar.make_fake_score_step(this)(this.init(TEACHER, jax.random.key(0)), {}, toy.batch(64), jax.random.key(1))
    assert latest[0] <= max(visited) <= latest[1]


@pytest.mark.parametrize("kind", ["segment", "trajectory"])
def test_a_chain_has_the_samples_of_all_times(kind):
    """At the time that `generate` draws it is the same sample, with the span and the state that noise is added to."""
    this, keys = setup(matched_times=kind, rollout="simulate"), jax.random.split(jax.random.key(0), 64)
    one, chain = (jax.jit(function)(TEACHER, toy.batch(64), keys) for function in (this.generate, this.chain))
    assert chain.at.tolist() == [[999, 749, 499, 249]] * 64
    nth = (999 - np.asarray(one.at, int)) // 250
    assert set(nth.tolist()) == {0, 1, 2, 3}
    for wanted, samples in zip(jax.tree.leaves(one), jax.tree.leaves(chain), strict=True):
        np.testing.assert_allclose(np.asarray(samples)[np.arange(64), nth], wanted, rtol=1e-5, atol=1e-5)


def fake_score_step(this, size):
    """The step once: times of the fake score's input by its updates [k b], and number of calls of the student."""
    seen, calls = [], []

    def fake_score(params, latents, times, condition):
        jax.debug.callback(lambda times: seen.append(times.tolist()), times)
        return toy.TRANSFORMER.apply(params, latents, times, condition)

    def student(*inputs):
        jax.debug.callback(lambda: calls.append(1))
        return toy.TRANSFORMER.apply(*inputs)

    this = dataclasses.replace(
        this,
        network=toy.TRANSFORMER._replace(apply=fake_score),
        student_network=toy.TRANSFORMER._replace(apply=student),
    )
    state = this.init(TEACHER, jax.random.key(0))
    after, metrics = jax.jit(dollar.make_fake_score_step(this))(state, {}, toy.batch(size), jax.random.key(1))
    jax.effects_barrier()
    assert moved(state, after) == {"fake_score", "optimizer of fake_score"}
    return np.array(seen), len(calls), after, metrics


def test_updates_that_share_a_rollout_see_samples_of_all_its_times():
    """Each example's once in four updates; each update's are at all times, as often. A chain takes four calls."""
    this = setup(rollout="simulate")
    this.config.fake_score.update({"updates": 5, "updates_per_rollout": 5})
    times, calls, after, metrics = fake_score_step(this, 256)
    segments = np.digitize(times, [249.5, 499.5, 749.5])
    assert calls == 4
    np.testing.assert_array_equal(np.sort(segments[:4], axis=0), np.arange(4)[:, None].repeat(256, axis=1))
    np.testing.assert_array_equal(segments[4], segments[0])
    assert (times[4] != times[0]).mean() > 0.9  # new noise, at a new time
    for update in segments:
        np.testing.assert_allclose(np.bincount(update) / 256, 0.25, atol=0.08)  # three standard errors
    assert int(after.optimizers["fake_score"][1][0].count) == 5
    _, calls, _, wanted = fake_score_step(setup(rollout="simulate"), 4)
    assert (calls, metrics.keys()) == (4, wanted.keys())  # a rollout for one update takes as many calls


@pytest.mark.parametrize("change", [{"rollout": "data"}, {"rollout": "simulate", "flow_map": True}])
def test_only_a_simulated_chain_of_few_steps_is_shared(change):
    this = setup(**change)
    this.config.fake_score.updates_per_rollout = 2
    with pytest.raises(UserError, match="updates_per_rollout=2 needs generator"):
        parts(this)


def test_what_is_kept_in_the_hosts_memory_changes_nothing():
    """Adam's moments, and the average, which is also a target, in every piece of a batch."""
    this = setup({"consistency": {"target": "ema"}}, accumulate=2)
    mesh = make_mesh(this.config.mesh, jax.devices()[:1])
    ends = []
    for offload in (False, True):
        state = initialize(this.init, mesh, TEACHER, jax.random.key(0), offload=offload)
        assert state.ema["mix"].sharding.memory_kind == ("pinned_host" if offload else "device")
        for part in compiled(parts(this), state, mesh):
            if part.name in ("generator", "fake_score"):
                state, _ = part.step(state, FROZEN, toy.batch(), jax.random.key(1))
        ends.append(jax.device_get(state))
    assert same(*map(vars, ends))


def alone(objective, **options):
    objectives = {"variational_score": 0.0, "consistency": 0.0, "latent_reward": 0.0}
    return setup(objectives | {objective: {"weight": 1.0, **options}})


def test_only_one_objective_takes_the_step_of_its_own():
    this = setup()
    state = this.init(TEACHER, jax.random.key(0))
    step = dollar.make_generator_step(this, ["latent_reward"])
    _, metrics = jax.eval_shape(step, state, FROZEN, toy.batch(), jax.random.key(1))
    assert {name for name in metrics if name.startswith("loss/")} == {"loss/latent_reward"}


def custom_reward(context):
    """A loss by the latent reward model that is not `latent_reward`."""
    return -context.reward_model(context.generated, context.condition), {}


custom_reward.needs = ("reward_model",)


@pytest.mark.parametrize(
    ("objectives", "names"),
    [
        ({}, ["generator", "fake_score", "reward", "finetune"]),
        ({"latent_reward": 0.0}, ["generator", "fake_score"]),
        ({"latent_reward": 0.0, "test_dollar:custom_reward": 1.0}, ["generator", "fake_score", "reward"]),
    ],
)
def test_a_step_of_the_latent_reward_alone_is_there_only_with_it(objectives, names):
    """The learning rate of the student then falls half as fast for each of its updates, which are twice as many."""
    this = setup(objectives)
    this.config.reward.step = "separate"
    this.config.generator.optimizer.decay_from = 0.0
    found = parts(this)
    assert [part.name for part in found] == names
    updates = 2 if "finetune" in names else 1
    assert rates(this, "generator", 10 * updates)[-2:] == pytest.approx(
        [1e-4 * (1 + np.cos(np.pi * (1 - 1 / (10 * updates)))) / 2, 0], abs=1e-9
    )


@pytest.mark.parametrize(("pretrain", "concurrent", "updates"), [(0, True, 10), (5, True, 15), (5, False, 5)])
def test_the_reward_models_rate_falls_over_all_its_updates(pretrain, concurrent, updates):
    """Those before the student's first update count."""
    this = setup()
    this.config.reward.update({"pretrain": pretrain, "concurrent": concurrent})
    this.config.reward.optimizer.decay_from = 0.0
    fallen = [1e-3 * (1 + np.cos(np.pi * share)) / 2 for share in (0, 1 - 1 / updates, 1)]
    found = rates(this, "reward", updates)
    assert [found[0], *found[-2:]] == pytest.approx(fallen, abs=1e-8)


def rates(this, name, updates):
    """The learning rate of each update, and of the one after: AdamW's steps with a gradient that stays the same."""
    optimizer, params, sizes = this.optimizer(name), {"x": jnp.zeros(())}, []
    state = optimizer.init(params)
    for _ in range(updates + 1):
        change, state = optimizer.update({"x": jnp.ones(())}, state, params)
        sizes.append(-float(change["x"]))
    return sizes


@pytest.mark.parametrize(("objective", "options"), [("refl", {}), ("draft", {"steps": 1}), ("draft", {"steps": 4})])
def test_pixel_rewards_reach_the_student_through_the_decoder(objective, options):
    """The reward of the decoded videos rises along the step, which neither decoder nor reward changes."""
    this = dataclasses.replace(
        alone(objective, **options),
        decode=lambda params, latents: latents @ params["mix"],
        pixel_reward=lambda frames, prepared, params: (frames * prepared[:, None, None, None, None]).mean((1, 2, 3, 4)),
    )
    frozen = {**FROZEN, "vae": {"mix": jnp.eye(4)[:, :3]}, "reward": {}}
    batch = toy.batch() | {"prepared": jnp.array([1.0, 2.0, -1.0, 0.5])}
    state, step = this.init(TEACHER, jax.random.key(0)), dollar.make_generator_step(this)
    after, metrics = step(state, frozen, batch, jax.random.key(1))
    assert moved(state, after) == {"student", "ema", "optimizer of generator"}
    _, later = step(state.replace(student=after.student), frozen, batch, jax.random.key(1))
    assert later["pixel_reward"] > metrics["pixel_reward"]
    assert float(metrics["loss"]) == pytest.approx(-float(metrics["pixel_reward"]), rel=1e-6)


def test_drafts_gradient_goes_through_its_last_steps_only():
    """Of one step it is that of the last call alone; the sample is the same whatever the number."""
    this, batch = alone("draft"), toy.batch()
    keys = jax.random.split(jax.random.key(1), 4)

    def end(student, steps):
        return this.sample(student, batch, keys, steps)

    np.testing.assert_allclose(end(TEACHER, 1), end(TEACHER, 4), atol=1e-5)
    one, all_steps = (jax.grad(lambda p, k=k: (end(p, k) ** 2).mean())(TEACHER)["mix"] for k in (1, 4))
    assert not np.allclose(one, all_steps, rtol=0.1)
    path = path_of([*sorted(this.config.generator.times, reverse=True), -1], 4)
    x_t = normal(fold(keys, 0), batch["latents"].shape[1:])
    x_t, _ = solve(this.denoiser(TEACHER), x_t, batch["condition"], path[:4], this.schedule, "ddim", keys)

    def by_hand(student):
        return (this.denoiser(student)(x_t, path[3], batch["condition"])[0] ** 2).mean()

    np.testing.assert_allclose(one, jax.grad(by_hand)(TEACHER)["mix"], rtol=1e-4)


def test_a_trajectory_is_an_ancestral_chain_and_its_policy_gradient_moves_the_student():
    this, batch, key = alone("policy_gradient"), toy.batch(), jax.random.key(1)
    state = this.init(TEACHER, jax.random.key(0))
    drawn = dollar.make_trajectory(this)(state, FROZEN, batch, key)
    states = drawn["trajectories"]["states"]
    assert states.shape == (4, 5, 1, 2, 2, 4)
    wanted, _ = this.denoiser(TEACHER)(states[:, -1], jnp.full(4, 19.0), batch["condition"])
    np.testing.assert_array_equal(drawn["scored"], wanted)
    extra = {"trajectories": drawn["trajectories"], "reward": jnp.array([1.0, 3.0, 2.0, 0.0]), "prompt": jnp.arange(4)}
    after, metrics = dollar.make_generator_step(this)(state, FROZEN, batch | extra, key)
    assert moved(state, after) == {"student", "ema", "optimizer of generator", "reward_statistics", "prompt_means"}
    assert float(metrics["reward_trajectory"]) == 1.5
    assert float(after.reward_statistics.mean) == 1.5


@pytest.mark.parametrize("size", [1, 4])
def test_a_proposal_is_each_captions_clip_and_sample(size):
    """Alg. 1, line 16; of one caption too."""
    this, batch, key = setup(), toy.batch(size), jax.random.key(1)
    state = this.init(TEACHER, jax.random.key(0))
    proposed = dollar.make_proposal(this)(state, FROZEN, batch, key)
    generated, *_ = this.generate(state.student, batch, example_keys(key, state.step, size))
    np.testing.assert_array_equal(proposed["latents"][::2], batch["latents"])
    np.testing.assert_array_equal(proposed["latents"][1::2], generated)
    np.testing.assert_array_equal(proposed["scored"], proposed["latents"])
    for rows in proposed["condition"].embedding[::2], proposed["condition"].embedding[1::2]:
        np.testing.assert_array_equal(rows, batch["condition"].embedding)
    scored = proposed | {"reward": jnp.arange(2.0 * size)}
    _, metrics = make_reward_step(toy.REWARD_MODEL, this.optimizer("reward"))(state, {}, scored, key)
    assert float(metrics["reward_data"]) == size - 1
    assert float(metrics["reward_student"]) == size


def test_without_videos_the_student_learns_the_same():
    """VSD and the fake score from a simulated rollout, with other latents and with none."""
    weights = {"consistency": 0.0, "latent_reward": 0.0}
    this, batch, key = setup(weights, rollout="simulate"), toy.batch(), jax.random.key(1)
    alone = dataclasses.replace(this, videos=False)
    state = this.init(TEACHER, jax.random.key(0))
    prompts = {"condition": batch["condition"]}
    for make in dollar.make_fake_score_step, dollar.make_generator_step:
        wanted, _ = make(this)(state, FROZEN, batch, key)
        assert same(make(alone)(state, FROZEN, prompts, key)[0], wanted)
        assert not same(wanted.fake_score, wanted.student)
        state = wanted
    with pytest.raises(KeyError, match="latents"):
        dollar.make_generator_step(this)(state, FROZEN, prompts, key)


def test_without_videos_the_reward_model_learns_from_two_samples():
    this, batch, key = dataclasses.replace(setup(rollout="simulate"), videos=False), toy.batch(), jax.random.key(1)
    state = this.init(TEACHER, jax.random.key(0))
    del batch["latents"]
    proposed = dollar.make_proposal(this)(state, FROZEN, batch, key)
    one, other = proposed["latents"][::2], proposed["latents"][1::2]
    generated, *_ = this.generate(state.student, batch, example_keys(key, state.step, 4))
    np.testing.assert_array_equal(other, generated)
    assert one.shape == (4, *toy.LATENT_SHAPE)
    assert (np.abs(one - other).max((1, 2, 3, 4)) > 0.1).all()
    scored = proposed | {"reward": jnp.arange(8.0)}
    step = make_reward_step(toy.REWARD_MODEL, this.optimizer("reward"), this.videos)
    after, logged = step(state, {}, scored, key)
    assert moved(state, after) == {"reward_model", "reward_statistics", "optimizer of reward"}
    assert "reward_data" not in logged
    assert float(logged["reward_student"]) == 3.5


def test_split_batches_are_the_rows_in_turn():
    parts = dollar.split_batch({"x": jnp.arange(6), "y": jnp.arange(12).reshape(6, 2)}, 3)
    assert [part["x"].tolist() for part in parts] == [[0, 3], [1, 4], [2, 5]]
    np.testing.assert_array_equal(parts[1]["y"], [[2, 3], [8, 9]])


def test_a_latent_rewards_value_is_in_the_rewards_units():
    """The model learns (R - mean) / deviation; the objective says R, and its gradient is as much larger."""
    results = {}
    for units, statistics in {
        "raw": RewardStatistics(jnp.float32(4), jnp.float32(20.0), jnp.float32(4 * 0.03**2)),
        "deviations": RewardStatistics(jnp.float32(4), jnp.float32(20.0), jnp.float32(4 * 0.03**2)),
    }.items():
        this = alone("latent_reward", units=units)
        state = this.init(TEACHER, jax.random.key(0)).replace(reward_statistics=statistics)
        _, results[units] = dollar.make_generator_step(this)(state, FROZEN, toy.batch(), jax.random.key(1))
    raw, deviations = results["raw"], results["deviations"]
    assert 19 < float(raw["latent_reward_estimate"]) < 21
    assert float(raw["loss"]) == pytest.approx(-float(raw["latent_reward_estimate"]), rel=1e-6)
    assert float(raw["norm/student_gradient"]) == pytest.approx(
        0.03 * float(deviations["norm/student_gradient"]), rel=1e-3
    )


def test_a_policy_gradient_compares_a_video_with_earlier_ones_of_its_prompt():
    """The same rewards twice: the second time those of the first are known, and nothing is left to learn from them."""
    this, batch, key = alone("policy_gradient"), toy.batch(), jax.random.key(1)
    state = this.init(TEACHER, jax.random.key(0))
    drawn = dollar.make_trajectory(this)(state, FROZEN, batch, key)["trajectories"]
    extra = {"trajectories": drawn, "reward": jnp.array([1.0, 3.0, 2.0, 0.0]), "prompt": jnp.array([5, 6, 7, 8])}
    step, norms = jax.jit(dollar.make_generator_step(this)), []
    for _ in range(MEMORY):
        after, metrics = step(state, FROZEN, batch | extra, key)
        norms.append(float(metrics["norm/student_gradient"]))
        state = state.replace(prompt_means=after.prompt_means, reward_statistics=after.reward_statistics)
    assert norms[-1] < norms[0] / 10
    np.testing.assert_allclose(state.prompt_means.mean[5:9], [1, 3, 2, 0], rtol=1e-5)


def test_trajectories_of_a_group_are_of_its_first_caption():
    """And the student is moved only where the rewards of a group differ."""
    this, batch, key = alone("policy_gradient", group=2), toy.batch(), jax.random.key(1)
    state = this.init(TEACHER, jax.random.key(0))
    drawn = dollar.make_trajectory(this)(state, FROZEN, batch, key)
    told, words = drawn["trajectories"]["condition"].embedding, batch["condition"].embedding
    np.testing.assert_array_equal(told, words[jnp.array([0, 0, 2, 2])])
    assert not np.array_equal(drawn["scored"][0], drawn["scored"][1])
    np.testing.assert_array_equal(drawn["condition"].embedding, words)  # other objectives keep their captions
    step, rows = dollar.make_generator_step(this), drawn | {"prompt": jnp.array([1, 1, 2, 2])}
    norms = [
        float(step(state, FROZEN, rows | {"reward": jnp.array(reward)}, key)[1]["norm/student_gradient"])
        for reward in ([1.0, 1.0, 5.0, 5.0], [1.0, 3.0, 5.0, 5.0], [10.0, 30.0, 5.0, 5.0])
    ]
    assert norms[0] == 0
    assert norms[1] > 0
    assert norms[2] == pytest.approx(norms[1], rel=1e-4)  # a deviation is the unit


def test_denoising_on_data_is_the_teachers_loss():
    """A student that knows the clean latents has none."""
    this = alone("denoising", prediction_type="x0")
    perfect = this.network._replace(apply=lambda params, x_t, times, condition: toy.batch()["latents"])
    this = dataclasses.replace(this, network=perfect, prediction_type="x0")
    state = this.init(TEACHER, jax.random.key(0))
    _, metrics = dollar.make_generator_step(this)(state, FROZEN, toy.batch(), jax.random.key(1))
    assert float(metrics["loss"]) < 1e-9


def test_an_unknown_objective_is_named():
    with pytest.raises(UserError, match=r"hinge.*no module"):
        dollar.make_generator_step(setup({"hinge": 1.0}))


def test_an_objective_from_outside_the_package(tmp_path, monkeypatch):
    (tmp_path / "my_fork_losses.py").write_text(
        "import jax.numpy as jnp\n"
        "def shrink(context, *, power=2):\n"
        "    return jnp.mean(jnp.abs(context.generated) ** power, axis=(1, 2, 3, 4)), {'seen': 1.0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    others = dict.fromkeys(("variational_score", "consistency", "latent_reward"), 0.0)
    config = setup(others | {"my_fork_losses:shrink": {"weight": 2.0, "power": 1}})
    state, batch = config.init(TEACHER, jax.random.key(0)), toy.batch()
    after, metrics = dollar.make_generator_step(config)(state, FROZEN, batch, jax.random.key(1))
    assert float(metrics["loss"]) == pytest.approx(2 * float(metrics["loss/my_fork_losses:shrink"]))
    assert float(metrics["seen"]) == 1
    assert "student" in moved(state, after)


def test_an_option_that_an_objective_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"objective consistency: .*'stepps'"):
        dollar.make_generator_step(setup({"consistency": {"stepps": 2}}))
