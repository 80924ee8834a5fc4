"""The KL term of a policy gradient where both students say a constant, so that each transition's mean is known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from test_policy_gradient import SCHEDULE, TIMES, chain, student

from dollar_jax import diffusion
from dollar_jax.errors import UserError
from dollar_jax.objectives.policy_gradient import path
from dollar_jax.objectives.start_divergence import divergence, start_divergence


def test_the_divergence_of_two_normals_by_quadrature():
    mean, other, deviation = 0.4, -0.3, 0.6
    one, two = scipy.stats.norm(mean, deviation), scipy.stats.norm(other, deviation)
    wanted, _ = scipy.integrate.quad(lambda x: one.pdf(x) * (one.logpdf(x) - two.logpdf(x)), -5, 5)
    found = divergence(*(jnp.full((1, 2, 3, 1, 1), x) for x in (mean, other)), jnp.full((1, 1, 1, 1, 1), deviation))
    assert float(found[0]) == pytest.approx(6 * wanted, rel=1e-4)  # of six independent elements


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_it_is_the_sum_over_the_last_transitions(steps):
    """A transition's mean moves with x0 by a_next - carried a, as in the policy gradient's tests."""
    theta, begun, shape = 0.5, 0.3, (1, 2, 2, 3)
    fixed = replace(chain(TIMES, 4, shape, theta), start=student(begun))
    times, wanted = path(TIMES, SCHEDULE), 0.0
    for here, there in zip(times[-steps - 1 : -1], times[-steps:], strict=True):
        (a, b), (a_next, b_next) = (SCHEDULE.at(jnp.array([float(t)])) for t in (here, there))
        sigma = diffusion.posterior_deviation(a, b, a_next, b_next)
        moved = (a_next - jnp.sqrt(b_next**2 - sigma**2) / b * a) * (theta - begun)
        wanted += np.prod(shape) * float(jnp.squeeze(moved / sigma)) ** 2 / 2

    def loss(value):
        return start_divergence(replace(fixed, student=student(value)), steps=steps)[0].mean()

    assert float(loss(theta)) == pytest.approx(wanted, rel=1e-4)
    assert float(jax.grad(loss)(theta)) == pytest.approx(2 * wanted / (theta - begun), rel=1e-4)
    assert float(loss(begun)) == pytest.approx(0, abs=1e-6)


def test_no_transition_is_refused():
    with pytest.raises(UserError, match="steps=0"):
        start_divergence(replace(chain(TIMES, 4, (1, 1, 1, 2), 0.3), start=student(0.3)), steps=0)
