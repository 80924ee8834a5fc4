import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from configs.shapes import get_config
from dollar_jax import diffusion
from dollar_jax.config import optimizer
from dollar_jax.steps import common, teacher


def rates(iterations=100, **changes):
    """Size of each update under a gradient that stays the same: the learning rate, as Adam normalises."""
    transform = common.make_optimizer(optimizer(0.5, clip=1e9, **changes), iterations)
    params = {"x": jnp.zeros(())}
    state, sizes = transform.init(params), []
    for _ in range(iterations):
        change, state = transform.update({"x": jnp.ones(())}, state, params)
        sizes.append(-float(change["x"]))
    return np.array(sizes)


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    sizes = rates(warmup=10, decay_from=0.6)
    np.testing.assert_allclose(sizes[:10], 0.05 * np.arange(10), atol=1e-4)
    np.testing.assert_allclose(sizes[10:60], 0.5, atol=1e-4)
    np.testing.assert_allclose(sizes[60:], 0.25 * (1 + np.cos(np.pi * np.arange(40) / 40)), atol=1e-3)
    np.testing.assert_allclose(rates(warmup=0, decay_from=1.0), 0.5, atol=1e-4)


def test_gradients_are_clipped():
    transform = common.make_optimizer(optimizer(1.0, warmup=0, b1=0.0, b2=0.0, decay_from=1.0), 10)
    scaled, _ = optax.clip_by_global_norm(1.0).update({"x": jnp.array([3.0, 4.0])}, optax.EmptyState())
    np.testing.assert_allclose(scaled["x"], [0.6, 0.8], rtol=1e-6)
    assert len(transform.init({"x": jnp.zeros(2)})) == 2


def test_moving_average_by_hand():
    # Step 0 keeps 1/10 of the old, step 990 991/1000, later the decay.
    for step, keep in ((0, 0.1), (990, 0.991), (10**6, 0.999)):
        average = common.moving_average({"x": jnp.array(1.0)}, {"x": jnp.array(0.0)}, 0.999, jnp.array(step))
        assert float(average["x"]) == pytest.approx(keep, rel=1e-5)


def test_mean_gradient_by_hand():
    examples = {"x": jnp.array([1.0, 2.0, 3.0, 6.0])}

    def loss(params, part):
        return (params["w"] * part["x"]) ** 2, {"x": part["x"]}

    for pieces in (1, 2, 4):
        gradient, metrics = common.mean_gradient(loss, {"w": jnp.array(2.0)}, examples, pieces)
        assert float(gradient["w"]) == pytest.approx(2 * 2 * (1 + 4 + 9 + 36) / 4)
        assert float(metrics["loss"]) == pytest.approx(4 * 50 / 4)
        assert float(metrics["x"]) == pytest.approx(3)


def test_neighbours_of_a_batch_go_to_different_pieces():
    """So that each of the devices, which hold neighbours, has work in every piece."""
    seen = []

    def loss(params, part):
        jax.debug.callback(lambda x: seen.append(x.tolist()), part["x"])
        return params["w"] * part["x"], {}

    common.mean_gradient(loss, {"w": jnp.array(2.0)}, {"x": jnp.arange(6.0)}, 3)
    jax.effects_barrier()
    assert sorted(seen) == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_an_update_that_is_not_finite_changes_nothing(bad):
    transform = common.make_optimizer(optimizer(0.5, warmup=0), 10)
    params = {"x": jnp.array([1.0, 2.0])}
    state = transform.init(params)
    for value, skipped in ((1.0, 0), (jnp.nan, 1), (jnp.inf, 1), (1.0, 0)):
        gradient = {"x": jnp.array([1.0, value if bad == "gradient" else 1.0])}
        loss = jnp.array(value if bad == "loss" else 1.0)
        new_params, new_state, metrics = common.update(transform, gradient, state, params, "net", loss)
        same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), (params, state), (new_params, new_state)))
        assert float(metrics["skipped/net"]) == skipped == same
        params, state = new_params, new_state
    assert np.isfinite(params["x"]).all()


def test_the_mean_of_gradients_can_be_kept_in_bfloat16():
    params = {"x": jnp.ones(3)}
    for dtype in ("float32", "bfloat16"):
        state = common.make_optimizer(optimizer(0.5, moment=dtype), 10).init(params)
        (mean,) = (x for path, x in jax.tree_util.tree_leaves_with_path(state) if ".mu" in jax.tree_util.keystr(path))
        (square,) = (x for path, x in jax.tree_util.tree_leaves_with_path(state) if ".nu" in jax.tree_util.keystr(path))
        assert (mean.dtype, square.dtype) == (jnp.dtype(dtype), jnp.float32)


def run_teacher(steps, **changes):
    stage = get_config().teacher
    stage.update({"batch_size": 8, "iterations": 400, **changes})
    stage.optimizer.update({"warmup": 0, "learning_rate": 1e-2})
    state = common.init_state(toy.TRANSFORMER, stage, jax.random.key(0))
    step = jax.jit(teacher.make_step(toy.TRANSFORMER, "conjugate", diffusion.ddpm_schedule(), stage))
    frozen, losses = {"empty": toy.condition(1, 3, 2)}, []
    for _ in range(steps):
        state, metrics = step(state, frozen, toy.batch(8), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    return state, losses


def test_teacher_learns_and_its_average_follows():
    state, losses = run_teacher(200)
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    assert int(state.step) == 200
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, state.ema, state.params))
    assert 0 < float(difference) < 0.5 * float(optax.tree.norm(state.params))


def test_a_teacher_that_drops_all_captions_does_not_learn_from_them():
    with_text, _ = run_teacher(3, caption_dropout=0.0)
    without, _ = run_teacher(3, caption_dropout=1.0)
    start = toy.TRANSFORMER.init(jax.random.key(0))
    np.testing.assert_array_equal(without.params["text"], start["text"])
    assert not np.array_equal(with_text.params["text"], start["text"])
    assert not np.array_equal(without.params["mix"], start["mix"])
