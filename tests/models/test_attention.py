"""Attention against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.models.attention import QUERIES, attention

B, N, M, H, D = 2, 5, 7, 3, 4


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (N, M, M)
    return [jax.random.normal(key, (B, size, H, D)).astype(dtype) for key, size in zip(keys, sizes, strict=True)]


def by_hand(q, k, v, bias=0.0, mask=None, scale=0.5):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = scale * np.einsum("bnhd,bmhd->bhnm", q, k) + bias
    if mask is not None:
        logits = np.where(mask[:, None, None, :], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)


def test_definition():
    np.testing.assert_allclose(attention(*inputs()), by_hand(*inputs()), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_scale(scale):
    np.testing.assert_allclose(attention(*inputs(), scale=scale), by_hand(*inputs(), scale=scale), atol=1e-5)


def test_bias_and_mask():
    bias = np.random.default_rng(0).normal(size=(1, H, N, M)).astype(np.float32)
    mask = np.arange(M)[None] < np.array([[3], [6]])
    result = attention(*inputs(), bias=jnp.asarray(bias), mask=jnp.asarray(mask))
    np.testing.assert_allclose(result, by_hand(*inputs(), bias=bias, mask=mask), atol=1e-5)


def test_the_softmax_is_float32_in_bfloat16():
    """700 equal keys: weights of 1/700 summed in bfloat16 would be wrong by percents."""
    q, k = jnp.zeros((1, 1, 1, 2), jnp.bfloat16), jnp.zeros((1, 700, 1, 2), jnp.bfloat16)
    result = attention(q, k, jnp.ones_like(k))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result.astype(jnp.float32), 1.0, atol=4e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [QUERIES + 1, 2 * QUERIES])
def test_blocks_of_many_queries(rows, masked):
    keys = jax.random.split(jax.random.key(1), 4)
    q, cotangent = (4 * jax.random.normal(key, (B, rows, H, D)) for key in keys[:2])
    k, v = (jax.random.normal(key, (B, M, H, D)) for key in keys[2:])
    mask = jnp.arange(M)[None] < jnp.array([[3], [6]]) if masked else None
    scale = 0.7
    result = attention(q, k, v, mask=mask, scale=scale)
    np.testing.assert_allclose(result, by_hand(q, k, v, mask=mask, scale=scale), atol=1e-5)

    def pull(function):
        return jax.vjp(lambda *args: function(*args, mask=mask, scale=scale), q, k, v)[1](cotangent)

    def whole(q, k, v, mask, scale):
        return jax.nn.dot_product_attention(q, k, v, mask=mask if mask is None else mask[:, None, None], scale=scale)

    for got, wanted in zip(pull(attention), pull(whole), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4 * float(jnp.abs(wanted).max()))


def test_the_memory_of_many_queries_is_that_of_a_block():
    def memory(rows):
        x = jax.ShapeDtypeStruct((1, rows, 2, 8), jnp.float32)
        gradient = jax.grad(lambda *args: attention(*args).sum(), (0, 1, 2))
        return jax.jit(gradient).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    rows = 4096
    assert memory(rows) < 2 * rows * rows  # bytes: the logits of both heads alone would be 8 rows^2
