"""Heads that a linear layer makes or takes, against its outputs, with and without an adapter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from dollar_jax.models.linear import MATRICES, SCALE, Linear

HEADS, WIDTH, RANK = 3, 4, 2


def random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def layer(inputs, outputs, adapted, use_bias=True):
    made = Linear(inputs, outputs, use_bias=use_bias, rngs=nnx.Rngs(0))
    if use_bias:
        made.bias = nnx.Param(random(outputs))
    if adapted:
        made.add_adapter()
        for name, value in zip((*MATRICES, SCALE), (random(inputs, RANK), random(RANK, outputs), 0.7), strict=True):
            setattr(made, name, nnx.Param(jnp.asarray(value)))
    return made


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_heads(adapted, use_bias):
    x = random(2, 5, 6)
    whole = layer(6, HEADS * WIDTH, adapted, use_bias)
    heads = whole.to_heads(x, HEADS)
    np.testing.assert_allclose(rearrange(heads, "b n h d -> b n (h d)"), whole(x), rtol=1e-5, atol=1e-5)

    back = layer(HEADS * WIDTH, 7, adapted, use_bias)
    np.testing.assert_allclose(back.from_heads(heads), back(whole(x)), rtol=1e-5, atol=1e-5)


def test_the_computation_has_its_dtype():
    made = Linear(6, HEADS * WIDTH, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((2, 5, 6), jnp.float32)
    assert jax.eval_shape(lambda x: made.to_heads(x, HEADS), x).dtype == jnp.bfloat16
