"""The adversarial term: between two Gaussians the best discriminator and the student's gradient are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from gaussian import Gaussian
from test_objectives import REAL, SCHEDULE, context, keys

from dollar_jax.errors import UserError
from dollar_jax.models import roles
from dollar_jax.objectives import adversarial as terms
from dollar_jax.objectives.adversarial import adversarial, discriminator_loss, generator_loss, own_loss
from dollar_jax.sampling import normal

FAKE = Gaussian(REAL.mean + 0.4, 1.2, SCHEDULE)


def log_ratio(x_t, times, slope=1.0, shift=0.0):
    """log p_data,t - log p_samples,t for each element, a logit of the best discriminator if the slope is 1. [b n]"""

    def log(world):
        a, _ = SCHEDULE.at(times)
        return -0.5 * ((x_t - a * world.mean) ** 2 / world.variance(times) + jnp.log(world.variance(times)))

    return (slope * (log(REAL) - log(FAKE)) + shift).reshape(len(x_t), -1)


def seeing(ctx, **changes):
    """The context with a discriminator that sees x_t itself, where the fake score's features would be."""
    return replace(
        ctx, features=lambda *inputs: inputs, own=lambda features: log_ratio(*features((1.0,))[:2], **changes)
    )


def test_losses_by_hand():
    logits, data = jnp.array([[0.0, 2.0], [-1.0, -1.0]]), jnp.array([[0.0, 0.0], [3.0, 1.0]])
    one, two, three = (np.log1p(np.exp(x)) for x in (1.0, 2.0, 3.0))
    zero = np.log(2)
    np.testing.assert_allclose(generator_loss(logits), [(zero + two - 2) / 2, one], rtol=1e-6)
    wanted = [(zero + two) / 2 + zero, one - 1 + (three - 3 + one - 1) / 2]
    np.testing.assert_allclose(discriminator_loss(logits, data), wanted, rtol=1e-6)


def worlds(count=4000):
    """Samples of FAKE beside data of REAL."""
    x = FAKE.mean + FAKE.deviation * normal(keys(count, 3), (1, 2, 2, 2))
    return context(count, generated=x)


def test_the_best_discriminator_is_the_log_ratio():
    ctx = worlds()

    def loss(slope, shift):
        return own_loss(seeing(ctx, slope=slope, shift=shift))[0].mean()

    at_best = jax.grad(loss, (0, 1))(1.0, 0.0)
    np.testing.assert_allclose(at_best, 0, atol=0.01)
    assert abs(jax.grad(loss)(0.5, 0.0)) > 0.02
    assert abs(jax.grad(loss, 1)(1.0, 1.0)) > 0.1
    value, metrics = own_loss(seeing(ctx))
    assert float(value.mean()) < 2 * np.log(2)  # of one that cannot tell them apart
    assert float(metrics["logit_gap"].mean()) > 0.1


def test_the_student_is_moved_from_its_score_towards_the_datas():
    """The gradient of softplus(-D) is -sigmoid(-D) (score of data - score of samples) a / n, n elements."""
    ctx, seen = worlds(16), []

    def features(x_t, times, condition, depths):
        seen.append((x_t, times))
        return x_t, times

    ctx = replace(ctx, features=features, own=lambda features: log_ratio(*features(())))
    got = jax.grad(lambda x: adversarial(replace(ctx, generated=x))[0].sum())(ctx.generated)
    seen.clear()
    adversarial(ctx)
    ((x_t, times),) = seen
    a, _ = SCHEDULE.at(times)
    weight = jax.nn.sigmoid(-log_ratio(x_t, times)).reshape(x_t.shape)
    wanted = -weight * (REAL.score(x_t, times) - FAKE.score(x_t, times)) * a / x_t[0].size
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-7)
    assert float(jnp.abs(wanted).max()) > 1e-3


def test_samples_and_data_get_the_same_noise_and_time():
    ctx = worlds(64)
    value, metrics = own_loss(seeing(replace(ctx, generated=ctx.latents)))
    np.testing.assert_array_equal(metrics["logit_gap"], 0)
    assert float(value.min()) >= 2 * np.log(2) - 1e-6


def test_heads_read_features_of_several_depths():
    """A head for each depth, of the width of its features; their loss moves all of them."""
    rng = np.random.default_rng(0)
    sizes = {0.5: 3, 1.0: 5}
    given = {depth: jnp.asarray(rng.normal(size=(4, 6, size)), jnp.bfloat16) for depth, size in sizes.items()}

    def features(depths):
        return [given[depth] for depth in depths]

    network = terms.build(None, None, features, depths=(0.5, 1.0), width=7)
    params = network.init(jax.random.key(0))
    logits = network.apply(params, features)
    assert logits.shape == (4, 2)
    assert logits.dtype == jnp.float32
    gradient = jax.grad(lambda p: discriminator_loss(network.apply(p, features), -logits).mean())(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


def test_a_transformer_without_features_is_refused():
    latents = jax.ShapeDtypeStruct((1, *toy.LATENT_SHAPE), jnp.float32)
    told = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), toy.condition(width=2))
    with pytest.raises(UserError, match=r"^my:net as transformer: .*method='features'\) fails: .*models/roles.py$"):
        roles.features(toy.TRANSFORMER, "my:net", latents, told, (0.5,))
