"""DDPO on Gaussians whose expected reward has a gradient that is known."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import toy
from test_objectives import context

from dollar_jax import diffusion
from dollar_jax.errors import UserError
from dollar_jax.objectives.context import Trajectories
from dollar_jax.objectives.policy_gradient import group_advantage, log_probability, path, policy_gradient, posterior
from dollar_jax.sampling import normal, path_of, solve

SCHEDULE = diffusion.ddpm_schedule()
TIMES = (249, 499, 749, 999)
END = 19  # the first of the teacher's 50 times


def test_the_posterior_is_eq_27():
    x0, x_t = np.random.default_rng(0).normal(size=(2, 3, 1, 2, 2, 4))
    here, there = jnp.array([999.0, 749.0, 499.0]), jnp.array([749.0, 499.0, 249.0])
    (a, b), (a_next, b_next) = SCHEDULE.at(here), SCHEDULE.at(there)
    abar, abar_next = np.float64(a) ** 2, np.float64(a_next) ** 2
    alpha = abar / abar_next
    mean = (1 - alpha) * np.sqrt(abar_next) / (1 - abar) * x0 + np.sqrt(alpha) * (1 - abar_next) / (1 - abar) * x_t
    variance = (1 - alpha) * (1 - abar_next) / (1 - abar)
    eps = (x_t - a * x0) / b
    ours, deviation = posterior(jnp.float32(x0), jnp.float32(eps), a, b, a_next, b_next)
    np.testing.assert_allclose(ours, mean, atol=1e-5)
    np.testing.assert_allclose(deviation**2, variance, rtol=1e-4)


def test_log_probability_is_that_of_independent_normals():
    x, mean = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 2, 4)).astype(np.float32)
    deviation = np.array([0.3, 1.0, 2.0], np.float32).reshape(3, 1, 1, 1, 1)
    wanted = scipy.stats.norm.logpdf(x, mean, deviation).sum((1, 2, 3, 4))
    np.testing.assert_allclose(log_probability(*map(jnp.asarray, (x, mean, deviation))), wanted, rtol=1e-5)


def test_a_path_ends_where_a_step_still_has_a_deviation():
    assert path(TIMES, SCHEDULE) == (999, 749, 499, 249, END)
    here, there = jnp.array([249.0]), jnp.array([float(END)])
    assert float(diffusion.posterior_deviation(*SCHEDULE.at(here), *SCHEDULE.at(there)).item()) > 0.1


def student(value):
    """Says x0 = value everywhere."""

    def denoise(x_t, times, condition):
        a, b = SCHEDULE.at(times)
        x0 = jnp.full_like(x_t, 1.0) * value
        return x0, (x_t - a * x0) / b

    return denoise


@functools.cache
def chain(times, count, shape, theta):
    """A context with `count` trajectories of the student, whose reward is the mean of x at their end."""
    keys, batched = jax.random.split(jax.random.key(0), count), path_of(path(times, SCHEDULE), count)
    last, visited = solve(
        student(theta), normal(keys, shape), toy.condition(count), batched, SCHEDULE, "ancestral", keys
    )
    reward = last.mean((1, 2, 3, 4))
    return context(
        count=count,
        times=times,
        latents=last,
        generated=last,
        trajectories=Trajectories(
            jnp.concatenate([visited, last[None]]).swapaxes(0, 1), toy.condition(count), reward, reward - reward.mean()
        ),
        deviation=reward.std(),
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("units", ["raw", "deviations"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 2, 3, 4)])
def test_its_gradient_is_that_of_the_expected_reward(steps, units, shape):
    """The mean of x as the reward, whose expectation's derivative in theta follows from the means of the transitions,
    each an affine function of the one before. It is the same for one element and for many.
    """
    theta, times = 0.3, path(TIMES, SCHEDULE)
    fixed = chain(TIMES, 20_000, shape, theta)

    def loss(value):
        return policy_gradient(replace(fixed, student=student(value)), steps=steps, units=units)[0].mean()

    # Weights of x0 and of x_t in each transition's mean; a later transition carries an earlier one's x along.
    wanted = 0.0
    for here, there in zip(times[-steps - 1 : -1], times[-steps:], strict=True):
        (a, b), (a_next, b_next) = (SCHEDULE.at(jnp.array([float(t)])) for t in (here, there))
        sigma = diffusion.posterior_deviation(a, b, a_next, b_next)
        carried = jnp.sqrt(b_next**2 - sigma**2) / b
        wanted = wanted * carried + a_next - carried * a
    wanted = float(jnp.squeeze(wanted)) / (float(fixed.deviation) if units == "deviations" else 1.0)
    assert -float(jax.grad(loss)(theta)) == pytest.approx(wanted, rel=0.08)


def test_a_baseline_takes_noise_from_the_gradient_and_nothing_else():
    """Rewards far from zero: without a baseline the estimates of single batches scatter, around the same mean."""
    fixed = chain(TIMES, 4000, (1, 2, 2, 2), 0.3)
    estimates = {}
    drawn = fixed.trajectories
    for name, advantage in {"without": drawn.reward + 5, "with": drawn.advantage}.items():

        def loss(value, advantage=advantage):
            ctx = replace(fixed, student=student(value), trajectories=drawn._replace(advantage=advantage))
            return policy_gradient(ctx)[0].reshape(40, 100).mean(1)

        estimates[name] = np.asarray(jax.jacfwd(loss)(0.3))
    assert estimates["with"].std() < estimates["without"].std() / 10
    error = estimates["without"].std() / np.sqrt(40)
    assert estimates["with"].mean() == pytest.approx(estimates["without"].mean(), abs=4 * error)


def test_a_chain_shorter_than_the_truncation_is_taken_whole():
    """A student of one step has one transition, from pure noise to the end."""
    fixed = chain((999,), 8, (1, 2, 2, 2), 0.3)
    fixed = replace(fixed, student=student(0.3))
    np.testing.assert_array_equal(policy_gradient(fixed, steps=2)[0], policy_gradient(fixed, steps=1)[0])
    assert np.isfinite(policy_gradient(fixed, steps=2)[0]).all()
    with pytest.raises(UserError, match="steps=0 transitions: wanted 1 or more"):
        policy_gradient(fixed, steps=0)


def test_a_groups_advantage_by_hand():
    """Mean 3 and deviation 2 in the first group; nothing to learn from the second; one of 101 is 10 deviations off."""
    reward = jnp.array([1.0, 1.0, 5.0, 5.0, 7.0, 7.0, 7.0, 7.0])
    np.testing.assert_allclose(group_advantage(reward, 4), [-1, -1, 1, 1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(group_advantage(100 * reward - 7, 4), group_advantage(reward, 4), atol=1e-5)
    outlier = group_advantage(jnp.zeros(101).at[3].set(1e-3), 101)
    assert float(outlier.max()) == 5
    np.testing.assert_allclose(outlier[:3], -0.1, rtol=1e-4)


def test_groups_have_the_direction_of_the_expected_rewards_gradient():
    """In one group, of all trajectories: the policy gradient in deviations of the reward, however it is scaled."""
    fixed = chain(TIMES, 4000, (1, 2, 2, 2), 0.3)
    drawn = fixed.trajectories
    spread = float(drawn.reward.std())
    grouped = drawn._replace(advantage=group_advantage(1000 * drawn.reward, 4000))

    def slope(trajectories, **options):
        def loss(value):
            ctx = replace(fixed, student=student(value), trajectories=trajectories)
            return policy_gradient(ctx, **options)[0].mean()

        return float(jax.grad(loss)(0.3))

    assert slope(grouped, group=4000) == pytest.approx(slope(drawn) / spread, rel=0.01)


@pytest.mark.parametrize(("options", "words"), [({"group": 0}, "group=0, wanted 1"), ({"group": 4}, "remove units")])
def test_groups_that_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        policy_gradient(chain(TIMES, 4, (1, 1, 1, 2), 0.3), units="deviations", **options)


def test_a_teachers_own_times_end_once():
    """The end is one of them: a step from it to itself would have no deviation."""
    times = SCHEDULE.spaced(50)
    assert path(times, SCHEDULE) == tuple(sorted(times, reverse=True))
    fixed = replace(chain(times, 4, (1, 1, 1, 2), 0.3), student=student(0.3))
    assert np.isfinite(policy_gradient(fixed)[0]).all()
