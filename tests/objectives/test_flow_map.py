"""Flow maps in a Gaussian world, where the map between any two times is known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from gaussian import Gaussian
from test_objectives import context

from dollar_jax import diffusion, sampling
from dollar_jax.errors import UserError
from dollar_jax.objectives.flow_map import derivative_along, draw_pairs, flow_map, mean_velocity, position
from dollar_jax.sampling import FlowMap, normal

SCHEDULES = {"ddpm": diffusion.ddpm_schedule(), "flow": diffusion.flow_schedule(shift=3.0)}
TIMES = jnp.array([150.5, 500.5, 700.5, 900.5])  # between two rows of the table, where a and b have a derivative


def world(schedule):
    return Gaussian(0.5, 0.7, schedule)


def exact(schedule, error=0.0):
    """The map of the exact flow to the same quantile at the target; its mean velocity plus `error` tau (tau - rho)."""
    real = world(schedule)

    def towards(x_t, times, condition, targets):
        (a, _), (a_there, _) = schedule.at(times), schedule.at(targets)
        (tau, size), (rho, size_there) = position(schedule, times), position(schedule, targets)
        share = jnp.sqrt(real.variance(targets) / real.variance(times))
        there = (a_there * real.mean + share * (x_t - a * real.mean)) / size_there
        x0, eps = real(x_t, times)
        distance = tau - rho
        mean = jnp.where(distance > 0, (x_t / size - there) / jnp.where(distance > 0, distance, 1), eps - x0)
        mean += error * tau * distance
        return x_t / size - tau * mean, x_t / size + (1 - tau) * mean

    return FlowMap(towards, schedule.clean)


def at(schedule, error=0.0, **changes):
    student = exact(schedule, error)
    real = world(schedule)
    return context(**({"teacher": real, "student": student, "fake_score": real, "schedule": schedule} | changes))


@pytest.mark.parametrize("name", SCHEDULES)
def test_differences_agree_with_the_forward_mode_derivative(name):
    """And with the identity U + (tau - rho) dU / dtau = v of the exact map."""
    schedule = SCHEDULES[name]
    ctx, targets = at(schedule), jnp.array([schedule.clean, 100.0, 300.0, 850.0])
    (tau, size), (rho, _) = position(schedule, TIMES), position(schedule, targets)
    x_t = normal(ctx.keys, (1, 2, 2, 2))
    x0, eps = world(schedule)(x_t, TIMES)
    given = ctx, x_t / size, TIMES, targets, eps - x0
    jvp, difference = (derivative_along(*given, how) for how in ("jvp", "difference"))
    np.testing.assert_allclose(difference, jvp, rtol=0.03, atol=0.03)
    mean = mean_velocity(ctx, ctx.student, x_t / size, TIMES, targets)
    np.testing.assert_allclose(mean + (tau - rho) * jvp, eps - x0, rtol=1e-3, atol=3e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_the_loss_rests_at_the_exact_map_and_leads_back_to_it(name, derivative):
    schedule = SCHEDULES[name]

    def loss(error, live):
        changes = {"student": exact(schedule, live), "differentiable_student": exact(schedule, error)}
        ctx = at(schedule, count=64, **changes)
        return flow_map(ctx, derivative=derivative, power=0.0)[0].mean()

    assert float(loss(0.0, 0.0)) < 2e-4
    assert float(loss(1.0, 1.0)) > 1e-2
    assert abs(jax.grad(loss, 1)(0.0, 0.0)) < 2e-3
    assert jax.grad(loss, 1)(1.0, 1.0) > 0.01
    assert jax.grad(loss, 1)(-1.0, -1.0) < -0.01


def test_power_makes_all_errors_count_alike():
    ctx = at(SCHEDULES["flow"], error=1.0, count=16)
    error = flow_map(ctx, power=0.0)[1]["flow_map_error"]
    np.testing.assert_allclose(flow_map(ctx, power=0.5)[0], error / np.sqrt(error + 1e-3), rtol=1e-5)


def test_with_the_datas_velocity_and_equal_times_it_is_flow_matching():
    schedule = SCHEDULES["flow"]
    ctx = at(schedule, count=4000)
    times, targets = draw_pairs(sampling.fold(ctx.keys, 0), schedule)
    got = flow_map(ctx, velocity="data", power=0.0)[1]["flow_map_error"]
    noise = normal(sampling.fold(ctx.keys, 1), ctx.latents.shape[1:])
    times = jnp.minimum(times, schedule.last - 0.5)
    a, b = schedule.at(times)
    x0, eps = world(schedule)(a * ctx.latents + b * noise, times)
    wanted = jnp.mean((eps - x0 - (noise - ctx.latents)) ** 2, axis=(1, 2, 3, 4))
    equal = np.asarray(targets >= times)
    assert equal.mean() == pytest.approx(0.5, abs=0.04)
    np.testing.assert_allclose(got[equal], wanted[equal], rtol=1e-3, atol=1e-4)


def test_pairs_of_times():
    """Half are equal, a quarter lead to the clean end, the others are two sorted uniform draws: thirds on average."""
    schedule = SCHEDULES["ddpm"]
    times, targets = (np.asarray(x) for x in draw_pairs(jax.random.split(jax.random.key(0), 20_000), schedule))
    assert (targets <= times).all()
    assert (targets == times).mean() == pytest.approx(0.5, abs=0.015)
    assert (targets == schedule.clean).mean() == pytest.approx(0.25, abs=0.015)
    between = (targets != times) & (targets != schedule.clean)
    assert targets[between].mean() == pytest.approx(333, abs=15)
    assert times[between].mean() == pytest.approx(666, abs=15)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_a_flow_map_samples_in_any_number_of_steps(name, steps):
    """Every number of steps ends at the same quantile; a denoiser alone needs many."""
    schedule = SCHEDULES[name]
    real, keys = world(schedule), jax.random.split(jax.random.key(0), 4)
    noise = normal(keys, (1, 2, 2, 2))
    wanted = real.flow(noise, jnp.full(4, schedule.last))

    def end(denoise):
        return sampling.sample(denoise, noise, toy.condition(4), schedule.spaced(steps), schedule, "ddim", keys)

    np.testing.assert_allclose(end(exact(schedule)), wanted, rtol=1e-3, atol=1e-3)
    assert float(jnp.abs(end(real) - wanted).max()) > 0.02
    one_call, _ = exact(schedule)(noise, jnp.full(4, schedule.last), toy.condition(4))  # to the clean end by itself
    np.testing.assert_allclose(one_call, wanted, rtol=1e-3, atol=1e-3)


def test_what_is_refused():
    ctx = at(SCHEDULES["ddpm"])
    with pytest.raises(UserError, match=r"set generator\.flow_map=True"):
        flow_map(replace(ctx, student=world(SCHEDULES["ddpm"])))
