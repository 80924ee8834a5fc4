import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

from dollar_jax import diffusion, sampling
from dollar_jax.errors import UserError

SCHEDULE = diffusion.ddpm_schedule()
WORLD = Gaussian(0.5, 0.7, SCHEDULE)
TEXT = jnp.zeros((1, 1, 1))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def sample(steps, sampler, count=1, noise=None):
    noise = sampling.normal(keys(count), (1, 4, 4, 4)) if noise is None else noise
    text = jnp.zeros((noise.shape[0], 1, 1))
    times = diffusion.trailing_times(steps)
    return noise, sampling.sample(WORLD, noise, text, times, SCHEDULE, sampler, keys(noise.shape[0], 1))


def test_ddim_converges_to_the_exact_flow():
    errors = []
    for steps in (10, 100, 1000):
        noise, x0 = sample(steps, "ddim")
        errors.append(float(jnp.abs(x0 - WORLD.flow(noise, jnp.array([999]))).max()))
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
        a, b = (float(x.squeeze()) for x in SCHEDULE.at(jnp.array([time])))
        slope = a * WORLD.deviation**2 / ((a * WORLD.deviation) ** 2 + b**2)
        variance = slope**2 * (a**2 * variance + b**2)
    assert float(x0.mean()) == pytest.approx(WORLD.mean, abs=4 * WORLD.deviation / np.sqrt(x0.size))
    assert float(x0.std()) == pytest.approx(variance**0.5, rel=4 / np.sqrt(2 * x0.size))


def test_samples_do_not_depend_on_the_batch_they_are_in():
    noise, together = sample(4, "renoise", count=3)
    text = jnp.zeros((1, 1, 1))
    times = diffusion.trailing_times(4)
    alone = sampling.sample(WORLD, noise[1:2], text, times, SCHEDULE, "renoise", keys(3, 1)[1:2])
    np.testing.assert_allclose(alone[0], together[1], atol=1e-6)


def test_the_order_of_times_does_not_matter():
    noise, forwards = sample(4, "ddim")
    backwards = sampling.sample(WORLD, noise, TEXT, (999, 749, 499, 249), SCHEDULE, "ddim", keys(1))
    np.testing.assert_array_equal(forwards, backwards)


def test_a_step_onto_itself_stands_still():
    x_t = sampling.normal(keys(2), (1, 2, 2, 2))
    path = jnp.array([[499, -1], [499, -1], [479, -1]])
    moved, _ = sampling.solve(WORLD, x_t, jnp.zeros((2, 1, 1)), path, SCHEDULE, "ddim", keys(2))
    alone, _ = sampling.solve(WORLD, x_t[:1], TEXT, path[1:, :1], SCHEDULE, "ddim", keys(1))
    np.testing.assert_array_equal(moved[0], alone[0])
    np.testing.assert_array_equal(moved[1], x_t[1])


def test_denoiser_guides_in_one_doubled_call():
    def apply(params, x_t, times, text):
        assert x_t.shape[0] in (2, 4)
        return params["scale"] * x_t + text[:, :1, :1, None, None]

    text, null = jnp.full((2, 1, 1), 3.0), jnp.full((1, 1, 1), 1.0)
    x_t, times = jnp.ones((2, 1, 1, 1, 1)), jnp.array([499, 999])
    plain = sampling.denoiser(apply, {"scale": 2.0}, "x0", SCHEDULE)(x_t, times, text)[0]
    guided = sampling.denoiser(apply, {"scale": 2.0}, "x0", SCHEDULE, null, 1.5)(x_t, times, text)[0]
    np.testing.assert_allclose(plain, 5.0)
    np.testing.assert_allclose(guided, 5 + 1.5 * (5 - 3))


@pytest.mark.parametrize("kind", ["data", "simulate"])
def test_rollouts_give_inputs_of_the_students_times(kind):
    count, times = 4000, (249, 999)
    latents = WORLD.mean + WORLD.deviation * sampling.normal(keys(count, 5), (1, 1, 1, 1))
    text = jnp.zeros((count, 1, 1))
    x_t, drawn = sampling.rollout(kind, WORLD, latents, text, times, SCHEDULE, "renoise", keys(count))
    assert set(np.unique(drawn)) == set(times)
    assert np.mean(drawn == 249) == pytest.approx(0.5, abs=0.04)
    at_noise = x_t[drawn == 999]
    assert float(at_noise.mean()) == pytest.approx(0, abs=0.1)
    assert float(at_noise.std()) == pytest.approx(1, abs=0.05)
    late = x_t[drawn == 249]
    a, b = SCHEDULE.at(jnp.array([249]))
    # From data the marginal is that of the data; simulated, the first x0 is the mean and all spread is renewed noise.
    wanted = float(jnp.sqrt(WORLD.variance(jnp.array([249])) if kind == "data" else b**2).squeeze())
    assert float(late.std()) == pytest.approx(wanted, rel=0.06)
    assert float(late.mean()) == pytest.approx(float(a.squeeze()) * WORLD.mean, abs=0.05)


def test_matched_times():
    at, times = jnp.array([249, 999, 749, 499, 249]), (999, 249, 749, 499)
    first, end = sampling.matched_times("segment", at, times, 1000)
    assert first.tolist() == [0, 750, 500, 250, 0]
    assert end.tolist() == [250, 1000, 750, 500, 250]
    first, end = sampling.matched_times("all", at, times, 1000)
    assert set(first.tolist()) == {0}
    assert set(end.tolist()) == {1000}
    drawn = sampling.draw_times(keys(5000), (jnp.full(5000, 3), jnp.full(5000, 6)))
    np.testing.assert_allclose(np.bincount(drawn) / 5000, [0, 0, 0, 1 / 3, 1 / 3, 1 / 3], atol=0.03)


def test_clipped_times_are_never_empty():
    span = jnp.array([0, 0, 15, 990, 400]), jnp.array([1000, 20, 30, 1000, 500])
    first, end = sampling.clip_times(span, 20, 980)
    assert first.tolist() == [20, 20, 20, 979, 400]
    assert end.tolist() == [980, 21, 30, 980, 500]


def test_unknown_kinds_are_refused():
    x, times, text = jnp.zeros((1, 1, 1, 1, 1)), jnp.array([499]), jnp.zeros((1, 1, 1))
    with pytest.raises(UserError, match="one of ddim, ancestral, renoise, not 'euler'"):
        inspect.unwrap(sampling.step_to)("euler", SCHEDULE, x, x, x, times, times)
    with pytest.raises(UserError, match="rollout is data or simulate, not 'online'"):
        inspect.unwrap(sampling.rollout)("online", WORLD, x, text, (499,), SCHEDULE, "ddim", keys(1))
    with pytest.raises(UserError, match="matched_times is all or segment, not 'some'"):
        inspect.unwrap(sampling.matched_times)("some", times, (499,), 1000)


def test_rollouts_pass_no_gradient():
    def moved(shift):
        def student(x_t, times, text):
            x0, eps = WORLD(x_t, times)
            return x0 + shift, eps

        latents = jnp.zeros((4, 1, 1, 1, 1))
        x_t, _ = sampling.rollout(
            "simulate", student, latents, jnp.zeros((4, 1, 1)), (249, 999), SCHEDULE, "ddim", keys(4)
        )
        return x_t.sum()

    assert float(jax.grad(moved)(0.0)) == 0
    assert float(moved(1.0)) != float(moved(0.0))
