"""UniPC against diffusers' scheduler on any network, and against the exact flow of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import toy
from diffusers import UniPCMultistepScheduler
from gaussian import Gaussian

from dollar_jax import sampling, unipc
from dollar_jax.diffusion import flow_schedule


def network(x, times):
    """Any function of both will do."""
    return np.tanh(0.8 * x + np.sin(np.float32(times) / 50)) - 0.3 * x


@pytest.mark.parametrize(("solver", "order"), [("unipc", 2), ("unipc1", 1)])
@pytest.mark.parametrize(("shift", "steps"), [(3.0, 1), (5.0, 2), (8.0, 3), (3.0, 4), (5.0, 50)])
def test_it_is_the_public_scheduler(solver, order, shift, steps):
    public = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=order
    )
    public.set_timesteps(steps)
    noise = np.random.default_rng(0).normal(size=(2, 2, 3, 2, 4)).astype(np.float32)
    theirs = torch.tensor(noise)
    for time in public.timesteps:
        theirs = public.step(torch.tensor(network(theirs.numpy(), time.numpy())), time, theirs).prev_sample
    schedule = flow_schedule(shift=shift, spacing="unipc")

    def apply(params, x_t, times, condition):
        return jnp.tanh(0.8 * x_t + jnp.sin(times / 50)[:, None, None, None, None]) - 0.3 * x_t

    denoise = sampling.denoiser(apply, {}, "flow", schedule)
    ours = unipc.sample(denoise, jnp.asarray(noise), toy.condition(2), schedule.spaced(steps), schedule, solver)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_higher_orders_are_closer_to_the_exact_flow():
    """The last step ends at x0 of the last time, so the flow is followed to that time, where x0 is known."""
    schedule = flow_schedule(shift=5.0, spacing="unipc")
    world, times = Gaussian(0.5, 0.7, schedule), schedule.spaced(12)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=(1, 1, 4, 4, 4)), jnp.float32)
    sigma = times[0] / 1000
    spread = ((1 - sigma) ** 2 * 0.7**2 + sigma**2) ** 0.5
    exact = world(0.5 * (1 - sigma) + spread * noise, jnp.array([times[0]]), None)[0]

    def error(solver):
        if solver == "ddim":
            x0 = sampling.sample(
                world, noise, toy.condition(), times, schedule, "ddim", jax.random.split(jax.random.key(0), 1)
            )
        else:
            x0 = unipc.sample(world, noise, toy.condition(), times, schedule, solver)
        return float(jnp.abs(x0 - exact).max())

    errors = [error(name) for name in ("ddim", "unipc1", "unipc")]
    assert errors[0] > errors[1] > 5 * errors[2], errors
