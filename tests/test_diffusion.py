import inspect
import itertools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax import diffusion
from dollar_jax.errors import UserError

KINDS = ("conjugate", "v", "eps", "flow", "x0")
VARIANCE_PRESERVING = diffusion.ddpm_schedule()


def draw(seed, times):
    x0, eps = jax.random.normal(jax.random.key(seed), (2, len(times), 1, 2, 2, 3))
    return x0, eps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [VARIANCE_PRESERVING, diffusion.flow_schedule()], ids=["ddpm", "flow"])
def test_a_prediction_gives_back_x0_and_eps(kind, schedule):
    # eps knows nothing of x0 at pure noise, x0 nothing of eps at the clean end.
    times = (
        [1, 19, 249, 500, 980] + ([schedule.last] if kind != "eps" else []) + ([schedule.clean] if kind != "x0" else [])
    )
    times = jnp.array(times, jnp.float32)
    x0, eps = draw(0, times)
    a, b = schedule.at(times)
    x_t = diffusion.forward(x0, eps, a, b)
    velocity = diffusion.from_x0_eps(kind, x0, eps, a, b)
    x0_again, eps_again = diffusion.to_x0_eps(kind, velocity, x_t, a, b)
    # Dividing by a small a or b magnifies the rounding of x_t.
    np.testing.assert_allclose(x0_again, x0, atol=2e-6 / (1 if kind != "eps" else float(a.min())))
    np.testing.assert_allclose(eps_again, eps, atol=2e-6 / (1 if kind != "x0" else float(b.min())))


@pytest.mark.parametrize("time", [300, 600, 999])
def test_noising_a_noisy_state_further_regresses_to_the_score_of_the_result(time):
    """The states have less variance than the noise at their time, which no clean data would give them."""
    count = 200_000
    one, zeta = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 1, count))
    at_state, (a, b) = (VARIANCE_PRESERVING.at(jnp.array([float(t)])) for t in (249, time))
    mean, deviation = 0.7, 0.5 * float(at_state[1].squeeze())
    x_t, x0, eps = diffusion.forward_from(mean + deviation * one, zeta, *at_state, a, b)
    np.testing.assert_allclose(a * x0 + b * eps, x_t, atol=1e-5)
    a, b, a_state, b_state = (float(x.squeeze()) for x in (a, b, *at_state))
    share = a / a_state
    variance = (share * deviation) ** 2 + b**2 - (share * b_state) ** 2
    assert float(x_t.mean()) == pytest.approx(share * mean, abs=0.01)
    assert float(x_t.var()) == pytest.approx(variance, rel=0.02)
    # E[eps | x_t] = -b score and E[x0 | x_t] = (x_t + b^2 score) / a, of which a regression finds slope and value.
    slope = float((eps * (x_t - share * mean)).mean()) / variance
    assert slope == pytest.approx(b / variance, abs=0.02)
    assert float(eps.mean()) == pytest.approx(0, abs=0.01)
    assert float(x0.mean()) == pytest.approx(mean / a_state, abs=0.01)


def test_noising_a_clean_state_is_the_forward_process():
    times = jnp.array([0.0, 249.0, 999.0])
    x0, eps = draw(0, times)
    clean, at = VARIANCE_PRESERVING.at(jnp.full(3, -1.0)), VARIANCE_PRESERVING.at(times)
    results = diffusion.forward_from(x0, eps, *clean, *at)
    for result, wanted in zip(results, (diffusion.forward(x0, eps, *at), x0, eps), strict=True):
        np.testing.assert_allclose(result, wanted, atol=1e-6)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(("conjugate", "v", "flow", "x0"), 2)))
def test_kinds_convert_into_each_other_even_without_signal(one, other):
    times = jnp.array([249.0, 499.0, 749.0, 999.0])
    x0, eps = draw(1, times)
    a, b = VARIANCE_PRESERVING.at(times)
    x_t = diffusion.forward(x0, eps, a, b)
    assert float(a[-1].squeeze()) == 0
    velocity = diffusion.from_x0_eps(one, x0, eps, a, b)
    there = diffusion.from_x0_eps(other, *diffusion.to_x0_eps(one, velocity, x_t, a, b), a, b)
    back = diffusion.from_x0_eps(one, *diffusion.to_x0_eps(other, there, x_t, a, b), a, b)
    np.testing.assert_allclose(there, diffusion.from_x0_eps(other, x0, eps, a, b), atol=1e-5)
    np.testing.assert_allclose(back, velocity, atol=1e-5)


def test_conjugate_velocity_is_equation_8_by_hand():
    # a = .6, b = .8, x0 = 2, eps = -1: x_t = .4, v = 3, x0 = (.4 + .8 * 3) / 1.4.
    a, b = (jnp.full((1, 1, 1, 1, 1), value) for value in (0.6, 0.8))
    x0, eps = diffusion.to_x0_eps("conjugate", jnp.full((1, 1, 1, 1, 1), 3.0), jnp.full((1, 1, 1, 1, 1), 0.4), a, b)
    assert float(x0.squeeze()) == pytest.approx(2)
    assert float(eps.squeeze()) == pytest.approx(-1)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@pytest.mark.parametrize("zero_snr", [True, False])
def test_schedule_is_the_public_one(shift, betas, zero_snr):
    public = diffusers.CogVideoXDDIMScheduler(
        beta_schedule=betas, rescale_betas_zero_snr=zero_snr, snr_shift_scale=shift, timestep_spacing="trailing"
    )
    ours = diffusion.ddpm_schedule(betas=betas, zero_snr=zero_snr, snr_shift=shift)
    np.testing.assert_allclose(ours.signal[1:] ** 2, public.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(ours.signal**2 + ours.noise**2, 1, atol=1e-6)
    assert (float(ours.signal[-1]) == 0) == zero_snr
    assert (float(ours.signal[0]), float(ours.noise[0])) == (1, 0)


def test_flow_schedule_is_a_straight_line():
    schedule = diffusion.flow_schedule(10)
    np.testing.assert_allclose(schedule.signal + schedule.noise, 1, atol=1e-6)
    np.testing.assert_allclose(schedule.noise, np.arange(11) / 10, atol=1e-6)
    # Half way, a shift of 3 stands at 3 * .5 / (1 + 2 * .5) = .75, and the network is told 10 * .75.
    assert diffusion.flow_schedule(10, shift=3.0).times[4] == pytest.approx(7.5)


def test_times_of_the_paper():
    assert VARIANCE_PRESERVING.spaced(4) == (249, 499, 749, 999)
    assert VARIANCE_PRESERVING.spaced(1) == (999,)
    assert VARIANCE_PRESERVING.spaced(50)[:2] == (19, 39)
    assert VARIANCE_PRESERVING.spaced(50)[-1] == 999
    with pytest.raises(UserError, match="1001 steps: the schedule has 1000 training times, give 1 to 1000"):
        VARIANCE_PRESERVING.spaced(1001)


@pytest.mark.parametrize("steps", [3, 7, 30, 50, 1000])
def test_any_number_of_steps_is_spaced_as_in_the_stock_scheduler(steps):
    public = diffusers.CogVideoXDDIMScheduler(timestep_spacing="trailing")
    public.set_timesteps(steps)
    assert VARIANCE_PRESERVING.spaced(steps) == tuple(public.timesteps.tolist()[::-1])


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_a_flows_times_are_the_numbers_that_its_network_was_told(shift):
    """1000 sigma, as stock Wan has it: its usual four are sigma 1, .9375, .8333, .625."""
    schedule = diffusion.flow_schedule(shift=shift)
    public = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    np.testing.assert_allclose(schedule.times[::-1], public.timesteps, rtol=1e-6)
    times = jnp.float32(schedule.times[[9, 499, 999]])
    a, b = schedule.at(times)
    np.testing.assert_allclose(b.ravel(), np.flip(public.sigmas.numpy())[[9, 499, 999]], rtol=1e-5)
    np.testing.assert_allclose((a + b).ravel(), 1, rtol=1e-6)
    if shift == 5:
        np.testing.assert_allclose(schedule.spaced(4), [625, 2500 / 3, 937.5, 1000])


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_a_flows_steps_are_spaced_as_in_the_stock_schedulers(shift):
    """The levels, and what the network gets: UniPC cuts a time to an integer, Euler does not."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    for steps in (1, 2, 3, 4, 7, 30, 50, 99):
        ends, stretch = diffusion.stretched_euler(steps, shift), {}
        if steps > 1:
            stretch["shift_terminal"] = ends[1]
        for spacing, public in (
            ("unipc", diffusers.UniPCMultistepScheduler(**flow)),
            ("euler", diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)),
            ("stretched", diffusers.FlowMatchEulerDiscreteScheduler(shift=ends[0], **stretch)),
        ):
            schedule = diffusion.flow_schedule(shift=shift, spacing=spacing)
            public.set_timesteps(steps)
            times = np.flip(schedule.spaced(steps))
            np.testing.assert_allclose(times / 1000, public.sigmas[:-1], rtol=1e-6, atol=1e-7)
            told = np.asarray(schedule.network_times(jnp.asarray(times, jnp.float32)))
            if spacing == "unipc":
                assert (told == public.timesteps.numpy()).all()
            else:
                np.testing.assert_allclose(told, public.timesteps, rtol=1e-6, atol=1e-4)


def test_stretched_times_are_nearly_trailing():
    """A student may train on the usual levels, and Euler samples it at these."""
    trailing, stretched = (diffusion.flow_schedule(shift=5.0, spacing=name) for name in ("trailing", "stretched"))
    np.testing.assert_allclose(trailing.spaced(4), stretched.spaced(4), atol=0.5)
    np.testing.assert_allclose(stretched.spaced(4)[0], 625, rtol=1e-6)


def test_a_time_may_lie_between_two_of_the_table():
    a, b = VARIANCE_PRESERVING.at(jnp.array([249.0, 249.25, 250.0]))
    for table in (a.ravel(), b.ravel()):
        assert float(table[1]) == pytest.approx(0.75 * float(table[0]) + 0.25 * float(table[2]), rel=1e-6)


def test_times_outside_a_schedule_are_refused():
    for schedule, good, bad in (
        (VARIANCE_PRESERVING, (0, 999), (-1, 1000)),
        (diffusion.flow_schedule(shift=5.0), (0.5, 1000), (0, 1001)),
    ):
        schedule.require(good, "generator.times")
        for time in bad:
            with pytest.raises(UserError, match=f"generator.times: {time} is no time of the schedule"):
                schedule.require((time,), "generator.times")


def test_eps_prediction_is_refused_where_it_cannot_work():
    with pytest.raises(UserError, match="zero_snr"):
        diffusion.check_prediction_type("eps", VARIANCE_PRESERVING)
    diffusion.check_prediction_type("eps", diffusion.ddpm_schedule(zero_snr=False))


def test_unknown_kinds_are_refused():
    x, one = jnp.zeros((1, 1, 1, 1, 1)), jnp.ones((1, 1, 1, 1, 1))
    kinds = "one of conjugate, v, eps, flow, x0, not 'score'"
    for function in diffusion.to_x0_eps, diffusion.from_x0_eps:
        with pytest.raises(UserError, match=kinds):
            inspect.unwrap(function)("score", x, x, one, one)
    with pytest.raises(UserError, match=kinds):
        inspect.unwrap(diffusion.check_prediction_type)("score", VARIANCE_PRESERVING)
    with pytest.raises(UserError, match="kind is ddpm or flow, not 'cosine'"):
        inspect.unwrap(diffusion.make_schedule)("cosine")
    with pytest.raises(UserError, match="betas is linear or scaled_linear, not 'cosine'"):
        inspect.unwrap(diffusion.ddpm_schedule)(betas="cosine")


def test_guidance_is_the_papers_w_and_diffusers_scale_minus_one():
    v, v_null = draw(2, range(1))
    np.testing.assert_array_equal(diffusion.guide(v, v_null, 0.0), v)
    np.testing.assert_allclose(diffusion.guide(v, v_null, 7.5), v_null + 8.5 * (v - v_null), rtol=1e-4, atol=1e-5)


def coefficients(sigma_of):
    """Weight of x0 and variance of the noise in x_next, for 499 -> 249, read off the linear step itself."""
    schedule = diffusion.ddpm_schedule(betas="linear", beta_start=1e-4, beta_end=0.02, zero_snr=False)
    here, there = schedule.at(jnp.array([499.0])), schedule.at(jnp.array([249.0]))
    sigma = sigma_of(*here, *there)
    zero, one = jnp.zeros((1, 1, 1, 1, 1)), jnp.ones((1, 1, 1, 1, 1))
    weights = [
        float(diffusion.reverse_step(x0, eps, z, *there, sigma).squeeze())
        for x0, eps, z in ((one, zero, zero), (zero, one, zero), (zero, zero, one))
    ]
    return weights, [float(x.squeeze()) for x in (*here, *there, sigma)]


@pytest.mark.parametrize(
    "sigma_of",
    [lambda a, b, a_next, b_next: 0 * b, diffusion.posterior_deviation, lambda a, b, a_next, b_next: b_next],
    ids=["ddim", "ancestral", "renoise"],
)
def test_reverse_steps_keep_the_marginals(sigma_of):
    # x_t = a x0 + b eps with x0 known: x_next must be a_next x0 plus noise of variance b_next^2.
    (x0, eps, z), (_, _, a_next, b_next, _) = coefficients(sigma_of)
    assert x0 == pytest.approx(a_next, abs=1e-6)
    assert eps**2 + z**2 == pytest.approx(b_next**2, abs=1e-6)


def test_ancestral_sigma_is_the_papers_and_its_printed_step_is_not_the_posterior():
    _, (a, b, a_next, b_next, sigma) = coefficients(diffusion.posterior_deviation)
    alpha = (a / a_next) ** 2
    assert sigma**2 == pytest.approx((1 - alpha) * b_next**2 / b**2, rel=1e-4)
    # As printed, with x_t = a x0 + b eps substituted: coefficients of x0 and of the noise.
    printed_x0 = a_next - np.sqrt(b_next**2 - sigma**2) * a / b + b_next * a / b
    printed_variance = b_next**2 + sigma**2
    assert abs(printed_x0 - a_next) > 0.05
    assert abs(printed_variance - b_next**2) > 0.1
