"""The text encoder against transformers' T5EncoderModel with the same random weights."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import relative
from flax import nnx
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from dollar_jax.convert import t5 as keys
from dollar_jax.convert.tables import convert
from dollar_jax.errors import UserError
from dollar_jax.models import t5

SMALL = {
    "vocab_size": 50,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 3,
    "num_heads": 2,  # d_kv times heads is not d_model
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "layer_norm_epsilon": 1e-3,
}
LENGTH = 13


@functools.cache
def compute(attend_padding: bool):
    """Both encoders with the same weights, and everything that the real one computes on random tokens."""
    torch.manual_seed(0)
    theirs = T5EncoderModel(T5Config(**SMALL, feed_forward_proj="gated-gelu", dropout_rate=0.0))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, SMALL["vocab_size"], (3, LENGTH))
    mask = np.arange(LENGTH)[None] < np.array([[13], [4], [1]])
    cotangent = rng.normal(size=(3, LENGTH, SMALL["d_model"])).astype(np.float32)
    states = []
    theirs.encoder.block[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    for block in theirs.encoder.block:
        block.register_forward_hook(
            lambda _, args, result: states.append(result[0] if isinstance(result, tuple) else result)
        )
    text = theirs(torch.tensor(tokens), attention_mask=None if attend_padding else torch.tensor(mask)).last_hidden_state
    (text * torch.tensor(cotangent)).sum().backward()

    network = t5.build(attend_padding=attend_padding, **keys.config(theirs.config.to_dict()))
    target = jax.eval_shape(network.init, jax.random.key(0))
    gradients = {key: parameter.grad.numpy() for key, parameter in theirs.named_parameters()}
    return SimpleNamespace(
        attend_padding=attend_padding,
        network=network,
        params=convert(keys.table({}), {key: value.numpy() for key, value in theirs.state_dict().items()}, target),
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        cotangent=cotangent,
        states=[state.detach().numpy() for state in states],
        text=text.detach().numpy(),
        gradients=convert(keys.table({}), gradients, target),
    )


@pytest.fixture(params=[True, False], ids=["all tokens", "masked"])
def case(request):
    return compute(request.param)


def test_text_and_gradients(case):
    @jax.jit
    def run(params):
        text, pull = jax.vjp(lambda p: case.network.apply(p, case.tokens, case.mask).embedding, params)
        return text, pull(case.cotangent)[0]

    text, gradients = run(case.params)
    assert relative(text, case.text) < 1e-4
    errors = jax.tree.map(relative, gradients, case.gradients)
    assert max(jax.tree.leaves(errors)) < 1e-3, errors


def test_every_block(case):
    """The states after each block, when each block continues from our own."""
    config = t5.Config(**SMALL)
    module = nnx.eval_shape(lambda: t5.T5Encoder(config, jnp.float32, nnx.Rngs(0)))
    graph = nnx.graphdef(module.blocks)
    buckets = t5.distance_buckets(LENGTH, SMALL["relative_attention_num_buckets"], 9)
    bias = jnp.moveaxis(jnp.asarray(case.params["distance_bias"]["embedding"])[buckets], -1, 0)[None]
    run = jax.jit(lambda block, x: nnx.merge(graph, block)(x, bias, None if case.attend_padding else case.mask))
    x = case.params["embed"]["embedding"][case.tokens]
    assert relative(x, case.states[0]) == 0
    assert len(case.states) == SMALL["num_layers"] + 1
    for layer, after in enumerate(case.states[1:]):
        x = run(jax.tree.map(lambda p, layer=layer: p[layer], case.params["blocks"]), x)
        assert relative(x, after) < 1e-4, layer


def test_padding_is_seen_only_if_the_config_says_so(case):
    """Tokens behind the mask change those before it, or do not; the mask goes along in both cases."""
    other = case.tokens.at[:, 5:].set(7)
    mask = jnp.broadcast_to(jnp.arange(LENGTH)[None] < 5, other.shape)
    told = [jax.jit(case.network.apply)(case.params, tokens, mask) for tokens in (case.tokens, other)]
    before, altered = (one.embedding[:, :5] for one in told)
    if case.attend_padding:
        assert relative(before, altered) > 1e-2
    else:
        np.testing.assert_allclose(before, altered, atol=1e-6)
    np.testing.assert_array_equal(told[0].mask, mask)


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 9), (64, 512), (16, 1000)])
def test_buckets_of_every_distance(buckets, max_distance):
    length = 1100
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    theirs = T5Attention._relative_position_bucket(distance, num_buckets=buckets, max_distance=max_distance)
    np.testing.assert_array_equal(t5.distance_buckets(length, buckets, max_distance), theirs)


def test_bfloat16_inside_float32_outside(case):
    network = t5.build(dtype=jnp.bfloat16, attend_padding=case.attend_padding, **SMALL)
    text = network.apply(case.params, case.tokens, case.mask).embedding
    assert text.dtype == jnp.float32
    assert 1e-4 < relative(text, case.text) < 1e-1


def test_embeddings_of_a_random_encoder_have_unit_size_and_depend_on_the_context():
    network = t5.build(**SMALL)
    params = jax.jit(network.init)(jax.random.key(0))
    text = network.apply(params, jnp.array([[3, 4, 5, 3], [9, 8, 7, 6]]), jnp.ones((2, 4), bool)).embedding
    np.testing.assert_allclose((text**2).mean(-1), 1.0, atol=1e-2)
    assert relative(text[0, 0], text[0, 3]) > 0.05


def test_user_errors():
    with pytest.raises(UserError, match="t5 has no dropout_rate"):
        t5.build(dropout_rate=0.1)
    with pytest.raises(UserError, match="own_biases, which T5 does not have"):
        keys.their_config({**SMALL, "own_biases": True})
    theirs = T5Config(**SMALL, feed_forward_proj="relu").to_dict()
    with pytest.raises(UserError, match="feed_forward_proj = 'relu'"):
        keys.config(theirs)
    del theirs["d_kv"], theirs["d_ff"]
    with pytest.raises(UserError, match=r"lacks d_kv, d_ff: is it a T5 encoder\?"):
        keys.config(theirs)


def test_a_random_encoder_with_large_numbers_for_distances_knows_the_order_of_words():
    """Two words change places, as the colours in "a red ring left of a blue square": each sees other neighbours."""
    tokens = jnp.array([[3, 4, 5, 6, 3, 7, 8], [3, 7, 5, 6, 3, 4, 8]])

    def change(**options):
        network = t5.build(**SMALL | {"num_heads": 8, "num_layers": 1}, **options)
        params = jax.jit(network.init)(jax.random.key(0))
        one, other = network.apply(params, tokens, jnp.ones((2, 7), bool)).embedding
        return float(jnp.abs(one[1] - other[5]).mean()), float(params["distance_bias"]["embedding"].std())

    (usual, deviation), (large, large_deviation) = change(), change(distance_std=3.0)
    assert deviation == pytest.approx(SMALL["d_model"] ** -0.5, rel=0.2)
    assert large_deviation == pytest.approx(3.0, rel=0.2)
    assert large > 3 * usual
