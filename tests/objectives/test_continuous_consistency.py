"""Continuous-time consistency in a Gaussian world, whose flow map and derivatives along the flow are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian
from test_objectives import context

from dollar_jax import diffusion
from dollar_jax.objectives.continuous_consistency import FLOOR, along_the_flow, continuous_consistency, tangent
from dollar_jax.sampling import normal

SCHEDULES = {"ddpm": diffusion.ddpm_schedule(), "flow": diffusion.flow_schedule(shift=3.0)}
OFF_GRID = jnp.array([100.5, 400.5, 700.5, 900.5])  # between two rows of the table, where a and b have a derivative


def world(schedule):
    return Gaussian(0.5, 0.7, schedule)


def flow_map(real):
    """The student that has learnt everything: it jumps to the end of the exact flow."""

    def denoise(x_t, times, condition):
        a, b = real.schedule.at(times)
        x0 = real.flow(x_t, times)
        return x0, (x_t - a * x0) / b

    return denoise


def at(schedule, **changes):
    """A context on this schedule, whose teacher is exact."""
    real = world(schedule)
    return context(**({"teacher": real, "student": flow_map(real), "fake_score": real, "schedule": schedule} | changes))


def circle(schedule, times, x_t):
    a, b = schedule.at(times)
    size = jnp.sqrt(a**2 + b**2)
    return x_t / size, a, b, size


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["flow map", "denoiser"])
def test_the_derivative_along_the_flow_is_that_of_finite_differences(name, kind):
    """A state is moved along the exact flow, to the same quantile of another time's distribution."""
    schedule, h = SCHEDULES[name], 0.4
    real = world(schedule)
    student = flow_map(real) if kind == "flow map" else Gaussian(0.2, 1.1, schedule)
    ctx = at(schedule, student=student)
    x_t = normal(ctx.keys, (1, 2, 2, 2))

    def velocity_after(moved):
        times = OFF_GRID + moved
        (a_old, _), (a, b) = schedule.at(OFF_GRID), schedule.at(times)
        share = jnp.sqrt(real.variance(times) / real.variance(OFF_GRID))
        x0, eps = student(a * real.mean + share * (x_t - a_old * real.mean), times, None)
        return (a * eps - b * x0) / jnp.sqrt(a**2 + b**2), jnp.arctan2(b, a)

    (before, angle_before), (after, angle_after) = velocity_after(-h), velocity_after(h)
    x, *_ = circle(schedule, OFF_GRID, x_t)
    velocity, flow, derivative = along_the_flow(ctx, student, real, x, OFF_GRID)
    np.testing.assert_allclose(derivative, (after - before) / (angle_after - angle_before), rtol=2e-2, atol=5e-3)
    np.testing.assert_allclose(velocity, velocity_after(0.0)[0], rtol=1e-4, atol=1e-5)
    x0, eps = real(x_t, OFF_GRID)
    _, a, b, size = circle(schedule, OFF_GRID, x_t)
    np.testing.assert_allclose(flow, (a * eps - b * x0) / size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_tangent_is_the_change_of_what_the_student_predicts(name):
    """For r = 1 it is cos df / dtheta with f = cos x - sin F, so 0 for the flow map; for r = 0 cos (F_T - F)."""
    schedule = SCHEDULES[name]
    real, student = world(schedule), Gaussian(0.2, 1.1, schedule)
    ctx = at(schedule, student=student)
    x_t = normal(ctx.keys, (1, 2, 2, 2))
    x, a, b, size = circle(schedule, OFF_GRID, x_t)
    exact = along_the_flow(ctx, flow_map(real), real, x, OFF_GRID)
    np.testing.assert_allclose(tangent(x, *exact, a, b, 1.0), 0, atol=2e-3)

    found = along_the_flow(ctx, student, real, x, OFF_GRID)
    cos, sin = a / size, b / size
    velocity, flow, derivative = found
    change = -sin * x + cos * flow - cos * velocity - sin * derivative
    np.testing.assert_allclose(tangent(x, *found, a, b, 1.0), cos * change, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(change).max()) > 0.1
    np.testing.assert_allclose(tangent(x, *found, a, b, 0.0), cos * (flow - velocity), rtol=1e-5, atol=1e-7)


def shifted_flow_map(real, by):
    """The flow map plus an error that grows with the noise, as a boundary at the clean end needs."""

    def denoise(x_t, times, condition):
        a, b = real.schedule.at(times)
        x0 = flow_map(real)(x_t, times, condition)[0] + by * b / jnp.sqrt(a**2 + b**2)
        return x0, (x_t - a * x0) / b

    return denoise


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loss_rests_at_the_flow_map_and_leads_back_to_it(name):
    schedule = SCHEDULES[name]
    real = world(schedule)

    def slope(by):
        def loss(value):
            frozen, live = (shifted_flow_map(real, x) for x in (by, value))
            ctx = at(schedule, count=64, student=live, differentiable_student=frozen)
            return continuous_consistency(ctx, warmup=0)[0].mean()

        return float(jax.grad(loss)(by))

    assert slope(0.0) == pytest.approx(0, abs=2e-3)
    assert slope(0.5) > 0.02
    assert slope(-0.5) < -0.02


def test_a_tangent_is_normalised_down_to_a_floor_and_warmed_up():
    schedule = SCHEDULES["ddpm"]
    real = world(schedule)
    for by in (1e-3, 100.0):
        ctx = at(schedule, student=shifted_flow_map(real, by))
        value, metrics = continuous_consistency(ctx, warmup=0)
        size = metrics["consistency_tangent"]
        np.testing.assert_allclose(value, 0.5 * (size / (size + FLOOR)) ** 2, rtol=1e-4)
    ctx = at(schedule, student=real)  # the teacher itself: its difference to the teacher is 0
    sizes = [
        float(continuous_consistency(replace(ctx, step=jnp.int32(step)), warmup=10)[1]["consistency_tangent"].max())
        for step in (0, 5, 10, 20)
    ]
    assert sizes[0] < 1e-5
    assert sizes[1] == pytest.approx(0.5 * sizes[2], rel=1e-3)
    assert sizes[2] == sizes[3] > 0.01


def test_only_the_student_that_is_trained_has_a_gradient():
    schedule = SCHEDULES["ddpm"]
    real = world(schedule)

    def loss(value):
        moved = shifted_flow_map(real, value)
        ctx = at(schedule, student=shifted_flow_map(real, 0.5), differentiable_student=moved, teacher=moved)
        return continuous_consistency(ctx)[0].sum()

    assert float(jax.grad(loss)(0.5)) == 0


def test_a_network_that_is_given_whole_times_has_the_derivative_of_its_times():
    schedule = diffusion.flow_schedule(shift=5.0, spacing="unipc")
    times = jnp.array([0.5, 400.7, 999.9, 1000.0])
    given, slope = jax.jvp(schedule.network_times, (times,), (jnp.ones(4),))
    np.testing.assert_array_equal(given, [0, 400, 999, 999])
    np.testing.assert_array_equal(slope, 1)
