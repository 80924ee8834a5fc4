"""The schedulers of exported models, in PyTorch, against our own sampling of the same network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import toy
from diffusers import CogVideoXDDIMScheduler

from dollar_jax import diffusion, sampling
from dollar_jax.convert.dollar_scheduler import DollarScheduler
from dollar_jax.convert.families import cogvideox
from dollar_jax.convert.to_torch import own_scheduler
from dollar_jax.errors import UserError

DDPM = {"kind": "ddpm", "zero_snr": True, "snr_shift": 3.0}
FLOW = {"kind": "flow", "shift": 3.0}
PUBLIC = {
    "_class_name": "CogVideoXDDIMScheduler",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
FOUR = (249, 499, 749, 999)


def card(prediction_type="v", schedule=None, times=FOUR, sampler="ddim") -> dict:
    return {"prediction_type": prediction_type, "schedule": schedule or DDPM, "times": times, "sampler": sampler}


def network(x, times):
    """Any function of both will do."""
    return 0.3 * x**2 - 0.001 * times + 0.2


@pytest.mark.parametrize(
    ("card", "stock"),
    [
        (card(), True),
        (card("x0"), True),
        (card("v", times=diffusion.ddpm_schedule().spaced(50)), True),
        (card("eps", {"kind": "ddpm", "zero_snr": False, "betas": "linear", "beta_end": 0.02}), True),
        (card("conjugate"), False),
        (card("flow", FLOW), False),
        (card("v", FLOW), False),
        (card("x0", times=(199, 649, 999)), False),
        (card("v", times=(499,)), False),
    ],
)
def test_sampling_there_is_sampling_here(card, stock):
    schedule = diffusion.make_schedule(**card["schedule"])
    noise = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2)).astype(np.float32)

    def apply(params, x, times, condition):
        return network(x, times[:, None, None, None, None])

    denoise = sampling.denoiser(apply, {}, card["prediction_type"], schedule)
    keys = jax.random.split(jax.random.key(0), 2)
    ours = sampling.sample(denoise, jnp.asarray(noise), toy.condition(2), card["times"], schedule, "ddim", keys)

    name, config = cogvideox.write_scheduler(card) or own_scheduler(card)
    kind = CogVideoXDDIMScheduler if stock else DollarScheduler
    assert name == kind.__name__
    theirs, x = kind.from_config(config), torch.tensor(noise)
    theirs.set_timesteps(len(card["times"]))
    for time in theirs.timesteps:
        x = theirs.step(network(x, time), time, x, return_dict=False)[0]
    np.testing.assert_allclose(x, ours, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("sampler", ["ancestral", "renoise"])
def test_samplers_that_draw_noise_keep_the_marginals(sampler):
    """x0 = 0 for sure: x at every time must be the noise of that time, and its own at each step."""
    assert cogvideox.write_scheduler(card("x0", sampler=sampler)) is None
    _, config = own_scheduler(card("x0", sampler=sampler))
    theirs = DollarScheduler.from_config(config)
    theirs.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, generator=generator)
    for place, time in enumerate(theirs.timesteps[:-1]):
        following = theirs.step(torch.zeros_like(x), time, x, generator=generator).prev_sample
        assert float(following.std()) == pytest.approx(config["noise"][place + 1], rel=0.02)
        assert float(torch.corrcoef(torch.stack([x, following]))[0, 1]) < 0.99
        x = following
    assert torch.all(theirs.step(torch.zeros_like(x), theirs.timesteps[-1], x).prev_sample == 0)


def test_fewer_steps_are_those_that_the_student_knows():
    theirs = DollarScheduler.from_config(own_scheduler(card("conjugate"))[1])
    for steps, times in ((4, [999, 749, 499, 249]), (2, [999, 499]), (1, [999])):
        theirs.set_timesteps(steps)
        assert theirs.timesteps.tolist() == times
    with pytest.raises(ValueError, match="takes 4 steps, or as few as divide them"):
        theirs.set_timesteps(3)


def test_times_between_those_of_a_table():
    """Euler on the flow, x += (sigma' - sigma) v, at the times of four steps with shift 5, one of them no float32."""
    sigma = [5 * tau / (1 + 4 * tau) for tau in (1.0, 0.75, 0.5, 0.25)]
    times = [1000 * x for x in sigma]
    theirs = DollarScheduler(times=times, signal=[1 - x for x in sigma], noise=sigma, prediction_type="flow")
    theirs.set_timesteps(4)
    assert theirs.timesteps.tolist() == pytest.approx([1000, 937.5, 2500 / 3, 625])
    x = wanted = torch.ones(3)
    for time, here, following in zip(theirs.timesteps, sigma, [*sigma[1:], 0.0], strict=True):
        wanted = wanted + (following - here) * (wanted**2 + time / 1000)
        x = theirs.step(x**2 + time / 1000, time, x).prev_sample
    torch.testing.assert_close(x, wanted)


def test_a_card_of_the_public_files():
    assert cogvideox.read_scheduler(PUBLIC) == {
        "prediction_type": "v",
        "schedule": {
            "kind": "ddpm",
            "steps": 1000,
            "betas": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "zero_snr": True,
            "snr_shift": 3.0,
        },
        "times": tuple(range(19, 1000, 20)),
        "sampler": "ddim",
    }


@pytest.mark.parametrize("change", [{}, {"snr_shift_scale": 1.0}, {"beta_schedule": "linear"}, {"beta_end": 0.02}])
def test_the_same_coefficients(change):
    theirs = CogVideoXDDIMScheduler.from_config(PUBLIC | change)
    ours = diffusion.make_schedule(**cogvideox.read_scheduler(PUBLIC | change)["schedule"])
    np.testing.assert_allclose(ours.signal[1:] ** 2, theirs.alphas_cumprod.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "the scheduler is a EulerDiscreteScheduler"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing = 'linspace': only 'trailing'"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "only 'linear' or 'scaled_linear'"),
        ({"prediction_type": "epsilon"}, "prediction_type 'eps' needs signal"),
    ],
)
def test_what_cannot_be_converted(change, fault):
    with pytest.raises(UserError, match=fault):
        cogvideox.read_scheduler(PUBLIC | change)
