"""The engine behind every key table: what it fills, and that it names every fault."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from restored import restore

from dollar_jax.convert.tables import (
    Rule,
    convert,
    convolution,
    convolution_rules,
    linear,
    linear_rules,
    norm_rules,
    pointwise,
    same,
)
from dollar_jax.errors import UserError

TABLE = [
    Rule("embed.weight", "embed", same),
    Rule("shared.weight", "embed", same),
    *convolution_rules({f"levels.{{level}}.{side}.conv": f"{side}/{{level}}" for side in ("up", "down")}),
    *linear_rules({"blocks.{layer}.ff.0": "blocks/expand"}),
    *norm_rules({"blocks.{layer}.norm": "blocks/norm"}),
]
TARGET = {
    "embed": jax.ShapeDtypeStruct((5, 4), jnp.float32),
    "up": {
        "1": {
            "kernel": jax.ShapeDtypeStruct((3, 3, 2, 6), jnp.float32),
            "bias": jax.ShapeDtypeStruct((6,), jnp.float32),
        }
    },
    "blocks": {
        "expand": {
            "kernel": jax.ShapeDtypeStruct((3, 4, 8), jnp.float32),
            "bias": jax.ShapeDtypeStruct((3, 8), jnp.float32),
        },
        "norm": {"scale": jax.ShapeDtypeStruct((3, 4), jnp.float32), "bias": jax.ShapeDtypeStruct((3, 4), jnp.float32)},
    },
}


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    shapes = {"embed.weight": (5, 4), "levels.1.up.conv.weight": (6, 2, 3, 3), "levels.1.up.conv.bias": (6,)}
    for layer in range(3):
        block = {"ff.0.weight": (8, 4), "ff.0.bias": (8,), "norm.weight": (4,), "norm.bias": (4,)}
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(0)
    return {key: rng.integers(-8, 8, shape).astype(np.float32) for key, shape in shapes.items()}


def faults(table, weights) -> list[str]:
    with pytest.raises(UserError) as error:
        convert(table, weights, TARGET)
    introduction, listed = str(error.value).split(": ", 1)
    assert introduction == "the weights do not fit the network"
    assert "\n" not in listed
    return sorted(listed.split("; "))


def test_every_number_arrives_in_its_place(weights):
    params = convert(TABLE, weights, TARGET)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), TARGET)
    np.testing.assert_array_equal(params["embed"], weights["embed.weight"])
    assert params["up"]["1"]["kernel"][2, 0, 1, 5] == weights["levels.1.up.conv.weight"][5, 1, 2, 0]
    for layer in range(3):
        kernel = params["blocks"]["expand"]["kernel"][layer].astype(np.float32)
        np.testing.assert_array_equal(kernel, weights[f"blocks.{layer}.ff.0.weight"].T)
        np.testing.assert_array_equal(params["blocks"]["expand"]["bias"][layer], weights[f"blocks.{layer}.ff.0.bias"])
        np.testing.assert_array_equal(params["blocks"]["norm"]["scale"][layer], weights[f"blocks.{layer}.norm.weight"])


def test_convolutions_of_any_number_of_axes():
    kernel = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    ours = convolution.to_ours(kernel)
    assert ours.shape == (4, 5, 6, 3, 2)
    assert ours[3, 1, 5, 2, 0] == kernel[0, 2, 3, 1, 5]
    np.testing.assert_array_equal(convolution.to_theirs(ours), kernel)
    assert linear.to_ours(np.ones((2, 3))).shape == (3, 2)


def test_back_again_bit_for_bit(weights):
    weights = {key: value.astype(jnp.bfloat16) for key, value in weights.items()}
    restored = restore(TABLE, convert(TABLE, weights, TARGET))
    assert restored.keys() == weights.keys()
    for key, value in weights.items():
        assert restored[key].dtype == value.dtype
        np.testing.assert_array_equal(restored[key], value)


def test_layers_of_different_dtypes_lose_nothing(weights):
    weights["blocks.1.norm.bias"] = np.full(4, 1 + 2**-20, np.float32)
    for layer in (0, 2):
        weights[f"blocks.{layer}.norm.bias"] = weights[f"blocks.{layer}.norm.bias"].astype(jnp.bfloat16)
    bias = convert(TABLE, weights, TARGET)["blocks"]["norm"]["bias"]
    np.testing.assert_array_equal(bias, np.stack([weights[f"blocks.{layer}.norm.bias"] for layer in range(3)]))
    assert bias.dtype == np.float32


@pytest.mark.parametrize(
    "key", ["blocks.0.ffx0.weight", "model.embed.weight", "embed.weight.scale", "blocks.0a.norm.bias"]
)
def test_dots_are_dots_and_the_whole_key_counts(weights, key):
    assert faults(TABLE, weights | {key: np.zeros(4)}) == [f"{key} matches 0 rules"]


def test_tied_weights_may_come_twice_but_must_agree(weights):
    convert(TABLE, weights | {"shared.weight": weights["embed.weight"]}, TARGET)
    weights["shared.weight"] = weights["embed.weight"] + 1
    assert faults(TABLE, weights) == ["shared.weight gives embed other values than an earlier key"]


def test_a_key_under_two_rules(weights):
    table = [*TABLE, Rule("embed.weight", "shadow", same)]
    assert faults(table, weights) == ["embed.weight matches 2 rules", "nothing fills embed"]


def test_a_key_without_a_place(weights):
    weights |= {"levels.1.down.conv.weight": np.zeros((6, 2, 3, 3)), "blocks.3.norm.bias": np.zeros(4)}
    assert faults(TABLE, weights) == [
        "blocks.3.norm.bias has no place: the network has 3 layers",
        "levels.1.down.conv.weight has no place: the network has no down/1/kernel",
    ]


@pytest.mark.parametrize("shape", [(8, 5), (1, 4), (4,), (), (8, 4, 1)])
def test_wrong_shapes_are_not_broadcast(weights, shape):
    weights["blocks.1.ff.0.weight"] = np.zeros(shape, np.float32)
    [fault] = faults(TABLE, weights)
    assert (
        fault
        == f"blocks.1.ff.0.weight has shape {shape}, which makes {shape[::-1]}, but blocks/expand/kernel is (4, 8)"
    )


def test_a_transform_that_refuses_is_a_fault(weights):
    weights["levels.1.up.conv.weight"] = np.zeros(6)
    [fault] = faults(TABLE, weights)
    assert fault.startswith("levels.1.up.conv.weight has shape (6,), which does not fit up/1/kernel: ")


def test_what_nothing_fills(weights):
    for key in ("embed.weight", "blocks.0.norm.bias", "blocks.2.norm.bias"):
        del weights[key]
    assert faults(TABLE, weights) == ["nothing fills blocks/norm/bias, layers [0 2]", "nothing fills embed"]


def test_all_faults_at_once(weights):
    weights |= {"unknown": np.zeros(1), "blocks.1.norm.bias": np.zeros(3), "blocks.7.norm.bias": np.zeros(4)}
    del weights["levels.1.up.conv.weight"]
    assert faults(TABLE, weights) == [
        "blocks.1.norm.bias has shape (3,), which makes (3,), but blocks/norm/bias is (4,)",
        "blocks.7.norm.bias has no place: the network has 3 layers",
        "nothing fills up/1/kernel",
        "unknown matches 0 rules",
    ]


@pytest.mark.parametrize("axes", [2, 3])
def test_pointwise_convolution_is_a_matrix(axes):
    weight = np.random.default_rng(0).normal(size=(5, 3) + (1,) * axes)
    matrix = pointwise(axes).to_ours(weight)
    np.testing.assert_array_equal(matrix, weight.reshape(5, 3).T)
    np.testing.assert_array_equal(pointwise(axes).to_theirs(matrix), weight)
