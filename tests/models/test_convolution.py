import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dollar_jax.models import convolution
from dollar_jax.models.convolution import (
    CausalConv,
    Stream,
    TimeConv,
    UpsamplingConv,
    convolve,
    group_frames,
    ungroup_frames,
)


@pytest.mark.parametrize("cached", [convolution.CACHED, 0], ids=["all frames", "frame by frame"])
def test_stacked_and_native_are_the_same_sums(monkeypatch, cached):
    monkeypatch.setattr(convolution, "CACHED", cached)
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 7))

    @functools.partial(jax.jit, static_argnums=2)
    def with_gradients(x, kernel, stacked):
        y, pull_back = jax.vjp(functools.partial(convolve, stacked=stacked), x, kernel)
        return y, *pull_back(jnp.sin(y))

    stacked, native = with_gradients(x, kernel, True), with_gradients(x, kernel, False)
    assert stacked[0].shape == (2, 4, 4, 5, 7)
    for one, other in zip(stacked, native, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_convolution_by_hand():
    x = jnp.arange(1.0, 5).reshape(1, 4, 1, 1, 1)
    kernel = jnp.zeros((3, 3, 3, 1, 1)).at[:, 1, 1, 0, 0].set(jnp.array([100.0, 10, 1]))
    for stacked in (True, False):
        np.testing.assert_allclose(convolve(x, kernel, stacked).ravel(), [123, 234])


def in_pieces(conv, x, cuts):
    """conv(x), one piece of frames after another."""
    pieces, past = [], None
    for piece in np.split(x, cuts, axis=1):
        stream = Stream(False, past)
        pieces.append(conv(piece, stream))
        past = stream.future
    return jnp.concatenate(pieces, axis=1)


@pytest.mark.parametrize("cuts", [[1], [2, 3], [1, 2, 3, 4]])
def test_stream_joins_chunks(cuts):
    conv = CausalConv(3, 4, dtype=jnp.float32, stacked=None, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 3, 3))
    np.testing.assert_allclose(in_pieces(conv, x, cuts), conv(x, Stream(False)), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("stacked", [True, False])
def test_before_the_first_frame_is_the_first_frame(frames, stacked):
    conv = CausalConv(3, 4, dtype=jnp.float32, stacked=stacked, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 3, 3))
    repeated = jnp.concatenate([x[:, :1], x[:, :1], x], axis=1)
    expected = convolve(repeated, conv.kernel[...], False)[:, :frames]  # what comes later changes nothing
    np.testing.assert_allclose(conv(x[:, :frames], Stream(True)), expected, atol=1e-5)


def test_groups_of_frames():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1, 1)
    lone = group_frames(x, 4, lone=True)
    np.testing.assert_array_equal(lone.reshape(2, 4), [[0, 0, 0, 0], [1, 2, 3, 4]])
    np.testing.assert_array_equal(ungroup_frames(lone, lone=True), x)
    pairs = group_frames(x[:, :4], 2, lone=False)
    np.testing.assert_array_equal(pairs.reshape(2, 2), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(ungroup_frames(pairs, lone=False), x[:, :4])


def test_upsampling_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 3))
    layer = UpsamplingConv(3, 6, dtype=jnp.float32, rngs=nnx.Rngs(1))
    layer.bias[...] = jax.random.normal(jax.random.key(2), (6,))
    large = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
    expected = nnx.Conv.__call__(layer, large)  # what it is: a 3 x 3 convolution with padding
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 4]])
def test_before_the_first_frame_may_be_zeros(cuts):
    conv = CausalConv(3, 4, dtype=jnp.float32, zeros=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 3, 3))
    expected = convolve(jnp.pad(x, ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0))), conv.kernel[...], False)
    np.testing.assert_allclose(in_pieces(conv, x, cuts), expected, atol=1e-5)


@pytest.mark.parametrize(("stride", "expected"), [(1, [123, 234, 345]), (2, [123, 345])])
def test_convolution_over_time(stride, expected):
    conv = TimeConv(1, 1, stride=stride, dtype=jnp.float32, rngs=nnx.Rngs(0))
    conv.kernel[...], conv.bias[...] = jnp.array([100.0, 10, 1]).reshape(3, 1, 1), jnp.array([0.5])
    x = jnp.arange(1.0, 6).reshape(1, 5, 1, 1, 1)
    np.testing.assert_allclose(conv(x).ravel(), np.array(expected) + 0.5)
    assert conv(x[:, : 3 - stride]).shape == (1, 0, 1, 1, 1)
