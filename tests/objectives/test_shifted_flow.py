"""A shifted rectified flow whose optimal network is known: it is told 1000 sigma, and nothing of a schedule.

x0 ~ N(mean, deviation^2), x_t = (1 - sigma) x0 + sigma eps, so that E[eps - x0 | x_t] is linear in x_t. A clock that is
off by the shift, or by an entry of a table, gives another x0 everywhere.
"""

import inspect
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from gaussian import Gaussian
from test_objectives import context

from dollar_jax import diffusion, sampling
from dollar_jax.objectives.consistency import consistency
from dollar_jax.objectives.context import Trajectories
from dollar_jax.objectives.policy_gradient import path, policy_gradient
from dollar_jax.objectives.variational_score import variational_score

SHIFT = 5.0
SCHEDULE = diffusion.flow_schedule(shift=SHIFT)
WORLD = Gaussian(0.5, 0.7, SCHEDULE)
FOUR = (625.0, 2500 / 3, 937.5, 1000.0)


def network(world):
    """The optimal flow network of Gaussian data, a function of its inputs alone."""

    def apply(params, x_t, times, condition):
        sigma = (times / 1000)[:, None, None, None, None]
        variance = ((1 - sigma) * world.deviation) ** 2 + sigma**2
        centred = x_t - (1 - sigma) * world.mean
        x0 = world.mean + (1 - sigma) * world.deviation**2 / variance * centred
        eps = sigma / variance * centred
        return eps - x0

    return apply


def denoiser(world=WORLD, schedule=SCHEDULE):
    return sampling.denoiser(network(world), {}, "flow", schedule)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def sample(times, sampler, count=1, denoise=None):
    noise = sampling.normal(keys(count), (1, 4, 4, 4))
    told = toy.condition(count)
    return noise, sampling.sample(denoise or denoiser(), noise, told, times, SCHEDULE, sampler, keys(count, 1))


def test_the_denoiser_is_the_optimal_one_at_every_time():
    times = jnp.array([50.0, 100.0, 625.0, 937.5, 1000.0])
    x_t = sampling.normal(keys(5), (1, 2, 2, 2))
    for ours, wanted in zip(denoiser()(x_t, times, toy.condition(5)), WORLD(x_t, times), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_sampling_converges_to_the_exact_flow():
    errors = []
    for steps in (10, 100, 1000):
        noise, x0 = sample(SCHEDULE.spaced(steps), "ddim")
        errors.append(float(jnp.abs(x0 - WORLD.flow(noise, jnp.array([1000.0]))).max()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 6e-3


def test_sampling_with_the_index_as_the_clock_does_not():
    """The fault that this file is for: a network that is told where a time stands in the table."""

    def by_index(params, x_t, times, condition):
        index = jnp.searchsorted(jnp.float32(SCHEDULE.times), times) + 1.0
        return network(WORLD)(params, x_t, index, condition)

    noise, x0 = sample(SCHEDULE.spaced(1000), "ddim", denoise=sampling.denoiser(by_index, {}, "flow", SCHEDULE))
    assert float(jnp.abs(x0 - WORLD.flow(noise, jnp.array([1000.0]))).max()) > 0.1


def test_ancestral_sampling_reaches_the_data_distribution():
    _, x0 = sample(SCHEDULE.spaced(250), "ancestral", count=64)
    assert float(x0.mean()) == pytest.approx(WORLD.mean, abs=4 * WORLD.deviation / np.sqrt(x0.size))
    assert float(x0.std()) == pytest.approx(WORLD.deviation, rel=4 / np.sqrt(2 * x0.size) + 0.01)


def test_a_student_visits_its_own_four_times():
    """Sigma 1, .9375, .8333 and .625: by hand, as flow Euler goes."""
    seen = []

    def spy(x_t, times, condition):
        jax.debug.callback(lambda t: seen.append(float(t[0])), times)
        return denoiser()(x_t, times, condition)

    noise, x0 = sample(FOUR, "ddim", denoise=spy)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, sorted(FOUR, reverse=True), rtol=1e-6)
    x, sigmas = np.asarray(noise, np.float64), [*(time / 1000 for time in sorted(FOUR, reverse=True)), 0.0]
    for here, there in itertools.pairwise(sigmas):
        told = jnp.array([1000 * here], jnp.float32)
        x = x + (there - here) * np.asarray(network(WORLD)({}, jnp.float32(x), told, None), np.float64)
    np.testing.assert_allclose(x0, x, atol=1e-5)


def shifted(count=256, **changes):
    """A context of the objectives in this world."""
    latents = WORLD.mean + WORLD.deviation * sampling.normal(keys(count, 9), (1, 2, 2, 2))
    every = jnp.zeros(count), jnp.full(count, 1000.0)
    values = {
        "schedule": SCHEDULE,
        "student": denoiser(),
        "ema": denoiser(),
        "teacher": denoiser(),
        "fake_score": denoiser(),
        "latents": latents,
        "generated": latents,
        "matched_times": every,
        "state_at": every[0],
        "times": FOUR,
    }
    return context(count, **(values | changes))


def test_variational_score_vanishes_at_the_optimum_and_points_to_it_elsewhere():
    z = sampling.normal(keys(512, 3), (1, 2, 2, 2))

    def gradient(mean, deviation):
        def loss(mean, deviation):
            fake = Gaussian(jax.lax.stop_gradient(mean), jax.lax.stop_gradient(deviation), SCHEDULE)
            return variational_score(shifted(512, fake_score=fake, generated=mean + deviation * z))[0].mean()

        return [float(x) for x in jax.grad(loss, (0, 1))(mean, deviation)]

    np.testing.assert_allclose(gradient(WORLD.mean, WORLD.deviation), 0, atol=1e-5)
    assert gradient(WORLD.mean + 0.5, WORLD.deviation)[0] > 0.01
    assert gradient(WORLD.mean - 0.5, WORLD.deviation)[0] < -0.01
    assert gradient(WORLD.mean, 2 * WORLD.deviation)[1] > 0.01


def test_variational_score_draws_times_of_the_shifted_schedule():
    """Uniform in the index of training: half of them above sigma = 5 / 6."""
    seen = []

    def spy(x_t, times, condition):
        seen.append(np.asarray(times))
        return denoiser()(x_t, times, condition)

    variational_score(shifted(4000, teacher=spy), low=0.0, high=1.0)
    assert np.mean(seen[0] > 1000 * 5 / 6) == pytest.approx(0.5, abs=0.03)


def test_consistency_vanishes_on_the_exact_flow_map():
    def flow_map(x_t, times, condition):
        a, b = SCHEDULE.at(times)
        x0 = WORLD.flow(x_t, times)
        return x0, (x_t - a * x0) / b

    def loss(student, grid):
        return float(consistency(shifted(64, student=student, ema=student), grid=grid, target="ema")[0].mean())

    def wrong(x_t, times, condition):
        return tuple(x + 0.3 * SCHEDULE.at(times)[1] for x in flow_map(x_t, times, condition))

    coarse, fine = loss(flow_map, 50), loss(flow_map, 1000)
    assert fine < coarse / 10
    assert fine < 1e-6
    assert fine < loss(wrong, 1000) / 100


def test_a_policy_gradients_path_ends_where_a_step_still_has_a_deviation():
    """At the first of 50 trailing times: u = .02, so sigma = 5 x .02 / (1 + 4 x .02)."""
    times = path(FOUR, SCHEDULE)
    assert times[:4] == tuple(sorted(FOUR, reverse=True))
    assert times[4] == pytest.approx(1000 * 0.1 / 1.08)
    here, there = (SCHEDULE.at(jnp.array([time])) for time in times[-2:])
    assert float(diffusion.posterior_deviation(*here, *there).squeeze()) > 0.05
    states = sampling.normal(keys(8), (1, 2, 2, 2))
    trajectory = jnp.broadcast_to(states[:, None], (8, 5, *states.shape[1:]))
    drawn = Trajectories(trajectory, toy.condition(8), jnp.ones(8), jnp.ones(8))
    fixed = replace(shifted(8), trajectories=drawn)
    assert np.isfinite(inspect.unwrap(policy_gradient)(fixed, steps=4)[0]).all()
