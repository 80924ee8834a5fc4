"""The objectives against Gaussian worlds whose scores, flows and divergences are known."""

import inspect
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from gaussian import Gaussian

from dollar_jax import diffusion, sampling
from dollar_jax.errors import UserError
from dollar_jax.objectives.consistency import boundary, consistency, distance
from dollar_jax.objectives.context import Context, in_units
from dollar_jax.objectives.denoising import denoising, denoising_loss, drop_captions, squared_error
from dollar_jax.objectives.latent_reward import latent_reward, reward_regression
from dollar_jax.objectives.variational_score import NEAR, follow, kl_direction, normalized, variational_score
from dollar_jax.types import Condition

SCHEDULE = diffusion.ddpm_schedule()
REAL = Gaussian(0.5, 0.7, SCHEDULE)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def no(*arguments):
    raise AssertionError("nothing here asks for it")


def context(count=4, student=REAL, teacher=REAL, fake_score=REAL, schedule=SCHEDULE, **changes):
    latents = REAL.mean + REAL.deviation * sampling.normal(keys(count, 9), (1, 2, 2, 2))
    values = {
        "schedule": schedule,
        "student": student,
        "differentiable_student": student,
        "start": None,
        "ema": student,
        "teacher": lambda guidance: teacher,
        "fake_score": fake_score,
        "features": no,
        "reward_model": lambda latents, condition: latents.mean(axis=(1, 2, 3, 4)),
        "own": None,
        "latents": latents,
        "condition": toy.condition(count),
        "negative": toy.condition(value=-2.0),
        "empty": toy.condition(value=-1.0),
        "generated": latents,
        "matched_times": (jnp.full(count, -1.0), jnp.full(count, 999.0)),
        "generated_at": jnp.full(count, 999.0),
        "state_at": jnp.full(count, -1.0),
        "keys": keys(count),
        "step": jnp.int32(0),
        "times": (249, 499, 749, 999),
        "sample": no,
        "pixel_reward": no,
        "deviation": jnp.float32(0.5),
        "trajectories": None,
    }
    values |= changes
    return Context(**{"state": jax.lax.stop_gradient(values["generated"]), **values})


# Eq. 4


def test_conjugate_loss_on_gaussian_data_is_the_conditional_variance_and_no_less_elsewhere():
    count, times = 20000, jnp.full(20000, 499.0)
    x0 = REAL.mean + REAL.deviation * sampling.normal(keys(count), (1, 1, 1, 1))
    a, b = (float(x.squeeze()) for x in SCHEDULE.at(times[:1]))
    variance = (a * REAL.deviation) ** 2 + b**2
    wanted = REAL.deviation**2 + 1 - (a * REAL.deviation**2 - b) ** 2 / variance

    def loss(shift):
        def network(x_t, times, condition):
            return diffusion.from_x0_eps("conjugate", *REAL(x_t, times), *SCHEDULE.at(times)) + shift

        told = toy.condition(count)
        return denoising_loss(network, "conjugate", SCHEDULE, x0, times, told, keys(count, 1)).mean()

    assert float(loss(0.0)) == pytest.approx(wanted, rel=4 * np.sqrt(2 / count))
    assert float(jax.grad(loss)(0.0)) == pytest.approx(0, abs=8 * np.sqrt(wanted / count))
    assert float(loss(0.3)) == pytest.approx(float(loss(0.0)) + 0.09, abs=0.02)


def test_conjugate_loss_on_noisy_states_has_its_minimum_at_the_score_of_what_is_made_of_them():
    count, times, state_at = 20000, jnp.full(20000, 499.0), jnp.full(20000, 249.0)
    students = Gaussian(0.5, 0.3, SCHEDULE)  # its states at 249, of which a clean sample is never seen
    deviation = np.sqrt(float(students.variance(state_at[:1]).squeeze()))
    a_state = float(SCHEDULE.at(state_at[:1])[0].squeeze())
    states = a_state * students.mean + deviation * sampling.normal(keys(count), (1, 1, 1, 1))

    def loss(shift, slope, state_at):
        def network(x_t, times, condition):
            best = diffusion.from_x0_eps("conjugate", *students(x_t, times), *SCHEDULE.at(times))
            return best + shift + slope * x_t

        told = toy.condition(count)
        return denoising_loss(network, "conjugate", SCHEDULE, states, times, told, keys(count, 1), state_at).mean()

    np.testing.assert_allclose(jax.grad(loss, (0, 1))(0.0, 0.0, state_at), 0, atol=0.04)
    assert abs(jax.grad(loss, 1)(0.0, 0.0, None)) > 0.2  # taken for clean, the states would look noisier than they are


def test_squared_error_by_hand():
    velocity, target = jnp.ones((2, 1, 1, 1, 2)), jnp.array([[1.0, 3.0], [0.0, 0.0]]).reshape(2, 1, 1, 1, 2)
    np.testing.assert_allclose(squared_error(velocity, target), [2, 1])


def test_a_share_of_captions_is_empty_and_the_others_are_as_they_were():
    """The mask and a family's further arrays too."""
    told, empty = Condition(jnp.ones((4000, 2, 3)), jnp.ones((4000, 2), bool), {"pooled": jnp.ones((4000, 5))}), None
    empty = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), told)
    dropped = drop_captions(told, empty, 0.1, keys(4000))
    for part in jax.tree.leaves(dropped):
        shares = np.asarray(part, float).reshape(4000, -1).mean(1)
        assert set(np.unique(shares)) == {0, 1}
        np.testing.assert_array_equal(shares, dropped.embedding[:, 0, 0])
    assert 1 - dropped.embedding.mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 4000))


def test_a_tuned_teacher_is_held_without_a_caption_too():
    """A network that errs by 1 where there is no caption, and is right elsewhere: the loss is the share of drops."""

    def right_but_for_null(x_t, times, condition):
        x0, eps = REAL(x_t, times)
        wrong = (condition.embedding == -1)[:, :, :, None, None]
        return x0 + wrong, eps

    def loss(share):
        ctx = context(4000, student=right_but_for_null)
        return float(denoising(ctx, prediction_type="x0", caption_dropout=share)[0].mean())

    assert loss(0.5) - loss(0.0) == pytest.approx(0.5, abs=0.05)
    with_default = float(denoising(context(4000, student=right_but_for_null), prediction_type="x0")[0].mean())
    assert with_default - loss(0.0) == pytest.approx(0.1, abs=0.03)


# Eq. 6-9


def test_boundary_is_the_identity_at_the_clean_end_and_x0_elsewhere():
    c_skip, c_out = (x.squeeze() for x in boundary(SCHEDULE, jnp.array([-1.0, 0.0, 19.0, 999.0])))
    assert (float(c_skip[0]), float(c_out[0])) == (1, 0)
    # By hand at t = 0: s = 10, d = .5: .25 / 100.25 and 10 / sqrt(100.25).
    assert float(c_skip[1]) == pytest.approx(0.25 / 100.25)
    assert float(c_out[1]) == pytest.approx(10 / np.sqrt(100.25))
    np.testing.assert_allclose(c_out[2:], 1, atol=1e-5)


def test_distances_by_hand():
    f, target = jnp.array([3.0, 0.0]).reshape(1, 1, 1, 1, 2), jnp.zeros((1, 1, 1, 1, 2))
    assert float(distance(f, target, "mse")[0]) == pytest.approx(4.5)
    assert float(distance(f, target, "huber")[0]) == pytest.approx((np.sqrt(9 + 1e-6) - 1e-3) / 2)


@pytest.mark.parametrize("options", [{"metric": "l1"}, {"target": "student_ema"}])
def test_a_consistency_of_another_kind_is_refused(options):
    (name, value) = next(iter(options.items()))
    unchecked = inspect.unwrap(distance if name == "metric" else consistency)
    arguments = (REAL.mean * jnp.ones((1, 1, 1, 1, 2)),) * 2 if name == "metric" else (context(),)
    with pytest.raises(UserError, match=rf"consistency: {name} is .*, not '{value}'"):
        unchecked(*arguments, **options)


def flow_map(x_t, times, condition):
    """The student that has learnt everything: it jumps to the end of the exact probability flow."""
    a, b = SCHEDULE.at(times)
    x0 = REAL.flow(x_t, times)
    return x0, (x_t - a * x0) / b


@pytest.mark.parametrize("target", ["ema", "student"])
@pytest.mark.parametrize("metric", ["mse", "huber"])
def test_consistency_vanishes_on_the_exact_flow_map(target, metric):
    # What is left is the error of the teacher's DDIM steps: with a 20 times finer grid nothing.
    def loss(student, grid):
        return float(consistency(context(64, student), grid=grid, target=target, metric=metric)[0].mean())

    wrong = loss(lambda *args: tuple(x + 0.3 * SCHEDULE.at(args[1])[1] for x in flow_map(*args)), 1000)
    coarse, fine = loss(flow_map, 50), loss(flow_map, 1000)
    assert fine < coarse / 10
    assert fine < (1e-6 if metric == "mse" else 1e-4)
    assert fine < wrong / 100 or target == "student"


def test_consistency_with_the_teacher_as_target_has_its_optimum_at_the_teachers_denoiser_after_m_steps():
    ctx = context(64, student=flow_map)
    start = consistency(ctx, steps=5, grid=50, target="teacher")[0]
    # By hand: noise the same latents with the same keys, solve, denoise there.
    times = jnp.asarray((-1, *SCHEDULE.spaced(50)))
    index = jax.vmap(lambda key: jax.random.randint(key, (), 1, 51))(sampling.fold(ctx.keys, 0))
    a, b = SCHEDULE.at(times[index])
    x = a * ctx.latents + b * sampling.normal(sampling.fold(ctx.keys, 1), ctx.latents.shape[1:])
    f = REAL.flow(x, times[index])
    for _ in range(5):
        following = jnp.maximum(index - 1, 0)
        x0, eps = REAL(x, times[index])
        a, b = SCHEDULE.at(times[following])
        x = jnp.where((index == 0)[:, None, None, None, None], x, a * x0 + b * eps)
        index = following
    wanted = jnp.where((index == 0)[:, None, None, None, None], x, REAL(x, times[index])[0])
    np.testing.assert_allclose(start, jnp.mean((f - wanted) ** 2, axis=(1, 2, 3, 4)), rtol=1e-3, atol=1e-7)


def test_only_the_student_side_of_consistency_has_a_gradient():
    def loss(side):
        def moved(by):
            def denoise(x_t, times, condition):
                x0, eps = REAL(x_t, times)
                return x0 + by, eps

            changes = {"student": {"student": denoise}, "teacher": {"teacher": lambda w: denoise}}[side]
            return consistency(replace(context(), **changes), target="teacher")[0].mean()

        return float(jax.grad(moved)(0.1))

    assert loss("student") != 0
    assert loss("teacher") == 0


# Eq. 10-13


def quadrature(count=24):
    """Nodes z, eps and weights of two independent standard normals: expectations of quadratics are exact."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    z, eps = (x.reshape(-1, 1, 1, 1, 1) for x in np.meshgrid(nodes, nodes))
    weights = np.outer(weights, weights).ravel()
    return jnp.asarray(z, jnp.float32), jnp.asarray(eps, jnp.float32), jnp.asarray(weights / weights.sum(), jnp.float32)


@pytest.mark.parametrize("time", [19.0, 249.0, 499.0, 979.0])
def test_kl_direction_is_the_gradient_of_the_closed_form(time):
    z, eps, weights = quadrature()
    times = jnp.full(len(z), time)
    a, b = SCHEDULE.at(times)

    def kl(mean, deviation):  # of the noised generator N(mean, deviation^2) from the noised REAL
        a_t, b_t = a[0].squeeze(), b[0].squeeze()
        fake, real = (a_t * deviation) ** 2 + b_t**2, (a_t * REAL.deviation) ** 2 + b_t**2
        shift = a_t * (mean - REAL.mean)
        return 0.5 * (jnp.log(real / fake) + (fake + shift**2) / real - 1)

    def estimate(mean, deviation):
        fake = Gaussian(mean, deviation, SCHEDULE)
        x_t = diffusion.forward(mean + deviation * z, eps, a, b)
        x0_real, x0_fake = (world(x_t, times)[0] for world in (REAL, fake))
        per_sample = (kl_direction(x0_real, x0_fake) * a**2 / b**2).squeeze()
        # Eq. 12 as it is printed, with the scores that are known.
        as_printed = -(REAL.score(x_t, times) - fake.score(x_t, times)) * a
        np.testing.assert_allclose(per_sample, as_printed.squeeze(), rtol=1e-2, atol=1e-3)
        return float(weights @ per_sample), float(weights @ (per_sample * z.squeeze()))

    for parameters in ((1.5, 0.3), (-0.2, 1.4)):
        np.testing.assert_allclose(estimate(*parameters), jax.grad(kl, (0, 1))(*parameters), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(estimate(REAL.mean, REAL.deviation), (0, 0), atol=1e-5)


def test_follow_passes_the_gradient_on():
    x, gradient = sampling.normal(keys(2), (2, 3, 1, 2, 2))[:, :, :, :, 0][..., None]
    value, passed = jax.value_and_grad(lambda x: follow(x, gradient).sum())(x)
    np.testing.assert_allclose(passed, gradient / gradient[0].size, rtol=1e-5)
    assert float(value) == pytest.approx(float(0.5 * jnp.mean(gradient**2, axis=(1, 2, 3, 4)).sum()), rel=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_variational_score_moves_the_generator_to_the_teachers_distribution(normalize):
    z = sampling.normal(keys(512, 3), (1, 2, 2, 2))

    def gradient(mean, deviation):
        def loss(mean, deviation):
            fake = Gaussian(jax.lax.stop_gradient(mean), jax.lax.stop_gradient(deviation), SCHEDULE)
            ctx = context(512, fake_score=fake, generated=mean + deviation * z)
            return variational_score(ctx, normalize=normalize)[0].mean()

        return [float(x) for x in jax.grad(loss, (0, 1))(mean, deviation)]

    at_optimum = gradient(REAL.mean, REAL.deviation)
    np.testing.assert_allclose(at_optimum, 0, atol=1e-5)
    too_high, too_wide = gradient(REAL.mean + 0.5, REAL.deviation), gradient(REAL.mean, 2 * REAL.deviation)
    assert too_high[0] > 0.01
    assert too_wide[1] > 0.01
    assert gradient(REAL.mean - 0.5, REAL.deviation)[0] < -0.01


def test_variational_score_adds_noise_to_the_state():
    seen, state_at, times = [], jnp.full(4, 249.0), jnp.full(4, 499.0)

    def spy(x_t, times, condition):
        seen.append(x_t)
        return REAL(x_t, times)

    x, state = jnp.zeros((4, 1, 32, 32, 2)), jnp.full((4, 1, 32, 32, 2), 3.0)
    span = jnp.full(4, 498.0), times
    changes = {"generated": x, "latents": x, "state": state, "state_at": state_at, "matched_times": span}
    variational_score(context(4, teacher=spy, fake_score=spy, **changes))
    (a_state, b_state), (a, b) = ([float(x.ravel()[0]) for x in SCHEDULE.at(at)] for at in (state_at, times))
    for x_t in seen:
        assert float(x_t.mean()) == pytest.approx(3 * a / a_state, abs=0.03)
        assert float(x_t.std()) == pytest.approx(np.sqrt(b**2 - (a / a_state * b_state) ** 2), rel=0.03)
    np.testing.assert_array_equal(*seen)


def test_variational_score_never_looks_before_the_state():
    """Not even where `high` is below all times of a segment."""
    seen, last = [], jnp.full(4, 999.0)

    def spy(x_t, times, condition):
        seen.append(times)
        return REAL(x_t, times)

    changes = {"state_at": last - 10, "matched_times": (last - 10, last), "generated_at": last, "fake_score": spy}
    value, _ = variational_score(context(4, **changes), high=0.98)
    np.testing.assert_array_equal(seen[0], last)
    assert np.isfinite(value).all()


def test_variational_score_looks_at_the_matched_times_between_its_bounds():
    after, upto = jnp.array([-1.0, 249.0, 749.0, 499.0]), jnp.array([249.0, 499.0, 999.0, 501.0])
    seen = []

    def spy(x, times, condition):
        seen.append(times)
        return REAL(x, times, condition)

    for seed in range(100):
        ctx = context(4, teacher=spy, matched_times=(after, upto), keys=keys(4, seed))
        variational_score(ctx, low=0.1, high=0.9)
    seen = np.array(seen)
    np.testing.assert_array_less(seen.min(axis=0), [120, 280, 770, 501])
    np.testing.assert_array_less([229, 479, 880, 500], seen.max(axis=0))
    assert np.all((seen >= [100, 250, 750, 500]) & (seen < [250, 500, 900, 502]))


@pytest.mark.parametrize(
    ("after", "upto", "low", "high", "wanted"),
    [
        (-1, 19, 0.02, 0.98, 20),  # all of the last step's times are below
        (989, 999, 0.02, 0.98, 979),  # all of the first one's above
        (994, 999, 0.02, 1.0, 999),
    ],
)
def test_where_the_bounds_leave_a_segment_no_time_the_nearest_is_taken(after, upto, low, high, wanted):
    seen = []

    def spy(x, times, condition):
        seen.append(times)
        return REAL(x, times, condition)

    span = jnp.full(64, float(after)), jnp.full(64, float(upto))
    variational_score(context(64, teacher=spy, matched_times=span), low=low, high=high)
    assert int(seen[0].max()) == wanted
    assert low * 1000 <= seen[0].min() <= seen[0].max() < high * 1000


def test_variational_score_is_finite_at_pure_noise():
    # There x_t says nothing, x0 is the mean of each world: the direction is the difference of the means.
    fake = Gaussian(REAL.mean + 0.3, 0.7, SCHEDULE)
    last = jnp.full(4, 998.0), jnp.full(4, 999.0)
    assert float(SCHEDULE.signal[-1]) == 0

    def loss(x):
        ctx = context(generated=x, fake_score=fake, matched_times=last)
        return variational_score(ctx, high=1.0, normalize=False)[0].sum()

    gradient = jax.grad(loss)(jnp.zeros((4, 1, 2, 2, 2)))
    np.testing.assert_allclose(gradient, 0.3 / 8, rtol=1e-5)


def test_normalisation_has_a_floor():
    x = jnp.ones((2, 1, 1, 1, 4))
    gradient = normalized(jnp.full_like(x, 0.2), x, x.at[1].add(0.5))
    np.testing.assert_allclose(gradient[0], 0.2 / NEAR, rtol=1e-6)
    np.testing.assert_allclose(gradient[1], 0.2 / 0.5, rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.9, 0.1), (-0.1, 0.5), (0.0, 1.5)])
def test_bounds_without_times_are_refused(low, high):
    with pytest.raises(UserError, match=r"variational_score: low=.*high=.*wanted 0 <= low < high <= 1"):
        variational_score(context(), low=low, high=high)


def test_variational_score_by_hand():
    # Fake and real are points, so that x0 is their mean: the direction is (fake - real) / mean |x - real| = 1 / 2.
    real, fake = Gaussian(1.0, 0.0, SCHEDULE), Gaussian(2.0, 0.0, SCHEDULE)
    generated = jnp.full((2, 1, 1, 1, 4), 3.0)

    def loss(x, normalize):
        ctx = context(2, teacher=real, fake_score=fake, latents=x, generated=x)
        return variational_score(ctx, normalize=normalize)[0].sum()

    np.testing.assert_allclose(jax.grad(loss)(generated, True), 0.5 / 4, rtol=1e-3)
    np.testing.assert_allclose(jax.grad(loss)(generated, False), 1 / 4, rtol=1e-3)


def test_real_score_is_guided_and_times_stay_inside():
    seen = []

    def teacher(guidance):
        seen.append(guidance)

        def denoise(x_t, times, condition):
            seen.append((int(times.min()), int(times.max())))
            return REAL(x_t, times)

        return denoise

    variational_score(replace(context(500), teacher=teacher), guidance=3.5)
    guidance, (low, high) = seen
    assert guidance == 3.5
    assert 20 <= low < 40
    assert 960 < high < 980


# Eq. 14, 15


def test_reward_equations_by_hand():
    np.testing.assert_allclose(reward_regression(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0])), [4, 0])
    generated = jnp.full((4, 1, 1, 1, 2), 0.25)
    loss, metrics = latent_reward(context(latents=generated, generated=generated))
    np.testing.assert_allclose(loss, -0.25)
    np.testing.assert_allclose(metrics["latent_reward_estimate"], 0.25)


def test_a_latent_reward_in_deviations_is_over_the_rewards_deviation():
    generated = jnp.full((4, 1, 1, 1, 2), 0.25)
    ctx = context(latents=generated, generated=generated)
    loss, metrics = latent_reward(ctx, units="deviations")
    np.testing.assert_allclose(loss, -0.25 / 0.5)
    np.testing.assert_allclose(metrics["latent_reward_estimate"], 0.25)
    with pytest.raises(UserError, match="units are raw or deviations, not 'percent'"):
        inspect.unwrap(in_units)(loss, ctx.deviation, "percent")


def by_caption(of_caption, of_negative):
    """A teacher for which a caption (0) is one Gaussian and the negative prompt (-2) another; guided it is refused."""

    def teacher(guidance):
        assert guidance == 0

        def denoise(x_t, times, condition):
            negative = condition.embedding[:, 0, 0] == -2
            pairs = zip(of_caption(x_t, times), of_negative(x_t, times), strict=True)
            return tuple(jnp.where(negative[:, None, None, None, None], away, own) for own, away in pairs)

        return denoise

    return teacher


def gradient_of(ctx, **options):
    def loss(x):
        changed = replace(ctx, generated=x)
        return variational_score(changed, normalize=False, **options)[0].sum()

    return jax.grad(loss)(ctx.generated) * ctx.generated[0].size


def test_decoupled_guidance_has_a_time_of_its_own():
    """Two Gaussians that differ in their mean by d: x0_caption - x0_negative = d b^2 / (a^2 s^2 + b^2) at any x_t.

    The fake score is the teacher's, so that guidance alone is left; its only time up to 200 and from 200 on is 200.
    """
    d, s, w = 0.4, REAL.deviation, 3.0
    teacher = by_caption(REAL, Gaussian(REAL.mean - d, s, SCHEDULE))
    ctx = replace(context(generated_at=jnp.full(4, 200.0)), teacher=teacher)
    a, b = (x.squeeze() for x in SCHEDULE.at(jnp.array([200.0])))
    got = gradient_of(ctx, guidance=w, decoupled=True, low=0.2)
    np.testing.assert_allclose(got, -w * d * b**2 / ((a * s) ** 2 + b**2), rtol=1e-4)


def test_decoupled_without_guidance_is_plain():
    fake = Gaussian(REAL.mean + 0.2, 0.5, SCHEDULE)
    ctx = replace(context(fake_score=fake), teacher=by_caption(REAL, REAL))
    np.testing.assert_array_equal(
        gradient_of(ctx, guidance=0.0, decoupled=True), gradient_of(ctx, guidance=0.0, decoupled=False)
    )


def test_data_forcing_by_its_equation():
    """With teacher and fake score of one Gaussian, x0_fake(x_t) - x0_real(data_t) = a^2 s^2 / V (x - data)."""
    once = jnp.full(4, 499.0), jnp.full(4, 500.0)  # one time: 500
    ctx = context(generated=sampling.normal(keys(4, 3), (1, 2, 2, 2)), matched_times=once)
    a, b = (x.squeeze() for x in SCHEDULE.at(jnp.array([500.0])))
    factor = (a * REAL.deviation) ** 2 / ((a * REAL.deviation) ** 2 + b**2)
    np.testing.assert_allclose(gradient_of(ctx, data_share=1.0), factor * (ctx.generated - ctx.latents), atol=1e-5)
    np.testing.assert_allclose(gradient_of(ctx), 0, atol=1e-6)
    assert float(jnp.abs(ctx.generated - ctx.latents).min(axis=(1, 2, 3, 4)).max()) > 0.01


def test_a_share_of_examples_looks_at_data():
    ctx = context(2000, generated=sampling.normal(keys(2000, 3), (1, 2, 2, 2)))
    moved = jnp.abs(gradient_of(ctx, data_share=0.3)).max(axis=(1, 2, 3, 4)) > 1e-5
    assert float(moved.mean()) == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 2000))
    with pytest.raises(UserError, match=r"data_share=0.3 needs videos"):
        variational_score(replace(ctx, latents=None), data_share=0.3)
