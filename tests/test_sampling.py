import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from gaussian import Gaussian

from dollar_jax import diffusion, sampling
from dollar_jax.errors import UserError

SCHEDULE = diffusion.ddpm_schedule()
WORLD = Gaussian(0.5, 0.7, SCHEDULE)
TOLD = toy.condition()


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def sample(steps, sampler, count=1, noise=None):
    noise = sampling.normal(keys(count), (1, 4, 4, 4)) if noise is None else noise
    times = SCHEDULE.spaced(steps)
    return noise, sampling.sample(
        WORLD, noise, toy.condition(len(noise)), times, SCHEDULE, sampler, keys(len(noise), 1)
    )


def test_ddim_converges_to_the_exact_flow():
    errors = []
    for steps in (10, 100, 1000):
        noise, x0 = sample(steps, "ddim")
        errors.append(float(jnp.abs(x0 - WORLD.flow(noise, jnp.array([999.0]))).max()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 6e-3


def test_ancestral_sampling_reaches_the_data_distribution():
    _, x0 = sample(250, "ancestral", count=64)
    assert float(x0.mean()) == pytest.approx(WORLD.mean, abs=4 * WORLD.deviation / np.sqrt(x0.size))
    assert float(x0.std()) == pytest.approx(WORLD.deviation, rel=4 / np.sqrt(2 * x0.size))


def test_renoising_spreads_samples_as_its_recursion_says():
    # Each step keeps only x0, a posterior mean of variance V: x = a x0 + b z, and the next x0 = slope x.
    _, x0 = sample(4, "renoise", count=64)
    variance = 0.0
    for time in (999, 749, 499, 249):
        a, b = (float(x.squeeze()) for x in SCHEDULE.at(jnp.array([float(time)])))
        slope = a * WORLD.deviation**2 / ((a * WORLD.deviation) ** 2 + b**2)
        variance = slope**2 * (a**2 * variance + b**2)
    assert float(x0.mean()) == pytest.approx(WORLD.mean, abs=4 * WORLD.deviation / np.sqrt(x0.size))
    assert float(x0.std()) == pytest.approx(variance**0.5, rel=4 / np.sqrt(2 * x0.size))


def test_samples_do_not_depend_on_the_batch_they_are_in():
    noise, together = sample(4, "renoise", count=3)
    times = SCHEDULE.spaced(4)
    alone = sampling.sample(WORLD, noise[1:2], TOLD, times, SCHEDULE, "renoise", keys(3, 1)[1:2])
    np.testing.assert_allclose(alone[0], together[1], atol=1e-6)


def test_the_order_of_times_does_not_matter():
    noise, forwards = sample(4, "ddim")
    backwards = sampling.sample(WORLD, noise, TOLD, (999, 749, 499, 249), SCHEDULE, "ddim", keys(1))
    np.testing.assert_array_equal(forwards, backwards)


def test_a_step_onto_itself_stands_still():
    x_t = sampling.normal(keys(2), (1, 2, 2, 2))
    path = jnp.array([[499.0, -1.0], [499.0, -1.0], [479.0, -1.0]])
    moved, _ = sampling.solve(WORLD, x_t, toy.condition(2), path, SCHEDULE, "ddim", keys(2))
    alone, _ = sampling.solve(WORLD, x_t[:1], TOLD, path[1:, :1], SCHEDULE, "ddim", keys(1))
    np.testing.assert_array_equal(moved[0], alone[0])
    np.testing.assert_array_equal(moved[1], x_t[1])


def test_denoiser_guides_in_one_doubled_call():
    def apply(params, x_t, times, told):
        assert x_t.shape[0] in (2, 4)
        return params["scale"] * x_t + told.embedding[:, :1, :1, None, None]

    told, negative = toy.condition(2, value=3.0), toy.condition(value=1.0)
    x_t, times = jnp.ones((2, 1, 1, 1, 1)), jnp.array([499.0, 999.0])
    plain = sampling.denoiser(apply, {"scale": 2.0}, "x0", SCHEDULE)(x_t, times, told)[0]
    guided = sampling.denoiser(apply, {"scale": 2.0}, "x0", SCHEDULE, negative, 1.5)(x_t, times, told)[0]
    np.testing.assert_allclose(plain, 5.0)
    np.testing.assert_allclose(guided, 5 + 1.5 * (5 - 3))


@pytest.mark.parametrize("kind", ["data", "simulate"])
def test_rollouts_give_inputs_of_the_students_times(kind):
    count, times = 4000, (249, 999)
    latents = WORLD.mean + WORLD.deviation * sampling.normal(keys(count, 5), (1, 1, 1, 1))
    walk = WORLD, latents, toy.condition(count), times, SCHEDULE, "renoise", keys(count)
    x_t, drawn = sampling.rollout(kind, *walk, shared_time=False)
    assert set(np.unique(drawn)) == set(times)
    assert np.mean(drawn == 249) == pytest.approx(0.5, abs=0.04)
    at_noise = x_t[drawn == 999]
    assert float(at_noise.mean()) == pytest.approx(0, abs=0.1)
    assert float(at_noise.std()) == pytest.approx(1, abs=0.05)
    late = x_t[drawn == 249]
    a, b = SCHEDULE.at(jnp.array([249.0]))
    # From data the marginal is that of the data; simulated, the first x0 is the mean and all spread is renewed noise.
    wanted = float(jnp.sqrt(WORLD.variance(jnp.array([249.0])) if kind == "data" else b**2).squeeze())
    assert float(late.std()) == pytest.approx(wanted, rel=0.06)
    assert float(late.mean()) == pytest.approx(float(a.squeeze()) * WORLD.mean, abs=0.05)


@pytest.mark.parametrize("sampler", ["ddim", "renoise"])
def test_a_shared_time_is_the_same_walk_that_ends_there(sampler):
    """Its state is that of an example with the same time and keys, after as many calls of the network."""
    times, told, latents = (249, 499, 749, 999), toy.condition(4), jnp.zeros((4, 1, 2, 2, 1))
    calls = []

    def student(x_t, times, condition):
        jax.debug.callback(lambda: calls.append(1))
        return WORLD(x_t, times)

    @partial(jax.jit, static_argnums=1)
    def run(keys, shared):
        walk = "simulate", student, latents, told, times, SCHEDULE, sampler
        return sampling.rollout(*walk, keys, shared_time=shared)

    seen = set()
    for seed in range(20):
        x_t, drawn = run(keys(4, seed), True)
        jax.effects_barrier()
        assert len(set(drawn.tolist())) == 1
        assert len(calls) == [999, 749, 499, 249].index(drawn[0])
        own, own_times = run(keys(4, seed), False)
        np.testing.assert_allclose(x_t[0], own[0], rtol=1e-6)  # whose draw it is
        assert drawn[0] == own_times[0]
        jax.effects_barrier()
        calls.clear()
        seen.add(int(drawn[0]))
    assert seen == set(times)


def test_matched_times():
    at, times = jnp.array([249.0, 999.0, 749.0, 499.0, 249.0]), (999, 249, 749, 499)
    after, upto = sampling.matched_times("segment", at, times, SCHEDULE)
    assert after.tolist() == [-1, 749, 499, 249, -1]
    assert upto.tolist() == at.tolist()
    after, upto = sampling.matched_times("all", at, times, SCHEDULE)
    assert set(after.tolist()) == {-1}
    assert set(upto.tolist()) == {999}
    after, upto = sampling.matched_times("trajectory", at, times, SCHEDULE)
    assert after.tolist() == [19, 769, 519, 269, 19]
    assert upto.tolist() == at.tolist()
    for near, wanted in ((9.0, 8), (0.0, -1)):  # with less than the margin, the student's own time is left
        after, upto = sampling.matched_times("trajectory", jnp.array([near]), (near,), SCHEDULE)
        assert (after.tolist(), upto.tolist()) == ([wanted], [near])
    drawn = sampling.draw_times(keys(5000), SCHEDULE, (jnp.full(5000, 2.0), jnp.full(5000, 5.0)))
    np.testing.assert_allclose(np.bincount(drawn.astype(int)) / 5000, [0, 0, 0, 1 / 3, 1 / 3, 1 / 3], atol=0.03)


@pytest.mark.parametrize(
    ("after", "upto", "least", "most"),
    [(-1, 999, 20, 979), (-1, 19, 20, 20), (14, 29, 20, 29), (989, 999, 979, 979), (399, 499, 400, 499)],
)
def test_drawn_times_are_between_the_bounds_and_never_none(after, upto, least, most):
    """Of 1000 times .02 to .98 are 20 to 979."""
    span = jnp.full(4000, float(after)), jnp.full(4000, float(upto))
    drawn = sampling.draw_times(keys(4000), SCHEDULE, span, 0.02, 0.98)
    near = (most - least) / 100  # 4000 draws come as close to both ends
    assert least <= drawn.min() <= least + near
    assert most - near <= drawn.max() <= most


def test_unknown_kinds_are_refused():
    x, times = jnp.zeros((1, 1, 1, 1, 1)), jnp.array([499.0])
    with pytest.raises(UserError, match="one of ddim, ancestral, renoise, not 'euler'"):
        inspect.unwrap(sampling.step_to)("euler", SCHEDULE, x, x, x, times, times)
    with pytest.raises(UserError, match="rollout is data or simulate, not 'online'"):
        inspect.unwrap(sampling.rollout)("online", WORLD, x, TOLD, (499,), SCHEDULE, "ddim", keys(1), False)
    with pytest.raises(UserError, match="matched_times is all, segment or trajectory, not 'some'"):
        inspect.unwrap(sampling.matched_times)("some", times, (499,), SCHEDULE)


@pytest.mark.parametrize("shared_time", [False, True])
def test_rollouts_pass_no_gradient(shared_time):
    def moved(shift):
        def student(x_t, times, condition):
            x0, eps = WORLD(x_t, times)
            return x0 + shift, eps

        latents = jnp.zeros((4, 1, 1, 1, 1))
        walk = "simulate", student, latents, toy.condition(4), (249, 999), SCHEDULE, "ddim", keys(4)
        x_t, times = sampling.rollout(*walk, shared_time=shared_time)
        assert (times == 249).any()  # one that the student has moved
        return x_t.sum()

    assert float(jax.grad(moved)(0.0)) == 0
    assert float(moved(1.0)) != float(moved(0.0))
