"""DDPO on Gaussians whose expected reward has a gradient that is known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_objectives import context

from dollar_jax import diffusion
from dollar_jax.objectives.policy_gradient import END, log_probability, path, policy_gradient, posterior
from dollar_jax.sampling import normal, walk

SCHEDULE = diffusion.ddpm_schedule()
TIMES = (249, 499, 749, 999)


def test_the_posterior_is_eq_27():
    x0, x_t = np.random.default_rng(0).normal(size=(2, 3, 1, 2, 2, 4))
    here, there = jnp.array([999, 749, 499]), jnp.array([749, 499, 249])
    (a, b), (a_next, b_next) = SCHEDULE.at(here), SCHEDULE.at(there)
    abar, abar_next = np.float64(a) ** 2, np.float64(a_next) ** 2
    alpha = abar / abar_next
    mean = (1 - alpha) * np.sqrt(abar_next) / (1 - abar) * x0 + np.sqrt(alpha) * (1 - abar_next) / (1 - abar) * x_t
    variance = (1 - alpha) * (1 - abar_next) / (1 - abar)
    eps = (x_t - a * x0) / b
    ours, deviation = posterior(jnp.float32(x0), jnp.float32(eps), a, b, a_next, b_next)
    np.testing.assert_allclose(ours, mean, atol=1e-5)
    np.testing.assert_allclose(deviation**2, variance, rtol=1e-4)


def test_log_probability_is_a_normals():
    x, mean = jnp.full((1, 1, 1, 1, 2), 3.0), jnp.full((1, 1, 1, 1, 2), 1.0)
    wanted = -0.5 * (2.0 / 0.5) ** 2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)
    assert float(log_probability(x, mean, jnp.full((1, 1, 1, 1, 1), 0.5))[0]) == pytest.approx(wanted, rel=1e-6)


def test_a_path_ends_where_a_step_still_has_a_deviation():
    assert path(TIMES) == (999, 749, 499, 249, END)
    here, there = jnp.array([249]), jnp.array([END])
    assert float(diffusion.posterior_deviation(*SCHEDULE.at(here), *SCHEDULE.at(there)).item()) > 0.1


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("normalize", [False, True])
def test_its_gradient_is_that_of_the_expected_reward(steps, normalize):
    """A student that says x0 = theta everywhere, and the mean of x as the reward: d E[R] / d theta follows from the
    means of the transitions, each an affine function of the one before.
    """
    count, theta = 20_000, 0.3
    shape = (1, 1, 1, 1)
    times = path(TIMES)
    batched = jnp.broadcast_to(jnp.array(times)[:, None], (len(times), count))

    def student(value):
        def denoise(x_t, times, text):
            a, b = SCHEDULE.at(times)
            x0 = jnp.full_like(x_t, 1.0) * value
            return x0, (x_t - a * x0) / b

        return denoise

    keys = jax.random.split(jax.random.key(0), count)
    text = jnp.zeros((count, 1, 1))
    last, visited = walk(student(theta), normal(keys, shape), text, batched, SCHEDULE, "ancestral", keys)
    reward = last.mean((1, 2, 3, 4))
    normalized = (reward - reward.mean()) / reward.std()
    fixed = context(
        count=count,
        latents=last,
        generated=last,
        trajectory=jnp.concatenate([visited, last[None]]).swapaxes(0, 1),
        reward=reward,
        normalized_reward=normalized,
    )

    def loss(value):
        return policy_gradient(replace(fixed, student=student(value)), steps=steps, normalize=normalize)[0].mean()

    # Weights of x0 and of x_t in each transition's mean; a later transition carries an earlier one's x along.
    wanted = 0.0
    for here, there in zip(times[-steps - 1 : -1], times[-steps:], strict=True):
        (a, b), (a_next, b_next) = (SCHEDULE.at(jnp.array([t])) for t in (here, there))
        sigma = diffusion.posterior_deviation(a, b, a_next, b_next)
        carried = jnp.sqrt(b_next**2 - sigma**2) / b
        wanted = wanted * carried + a_next - carried * a
    wanted = float(jnp.squeeze(wanted)) / (float(reward.std()) if normalize else 1.0)
    assert -float(jax.grad(loss)(theta)) == pytest.approx(wanted, rel=0.08)
