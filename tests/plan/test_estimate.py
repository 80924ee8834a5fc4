"""Bytes of a device, and bounds on the time, worked by hand."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from dollar_jax.plan import hlo
from dollar_jax.plan.chips import CHIPS
from dollar_jax.plan.estimate import Cost, workspace
from dollar_jax.plan.programs import device_bytes


def test_bytes_of_a_device():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    tree = {
        "split": jax.ShapeDtypeStruct((3, 8), jnp.float32, sharding=split),
        "copied": jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())),
        "on host": jax.ShapeDtypeStruct(
            (16,), jnp.int32, sharding=split.update(memory_kind="pinned_host", spec=("fsdp",))
        ),
        "nowhere": jax.ShapeDtypeStruct((7,), jnp.int8),
    }
    assert device_bytes(tree) == 3 * 2 * 4 + 5 * 2 + 7
    assert device_bytes(tree, "pinned_host") == 4 * 4


def test_workspace_of_cudnn():
    line = (
        "  %dot_product_attention_bwd.8 = (bf16[1,4,1024,64]{3,1,2,0}, bf16[1,4,1024,64]{3,1,2,0},"
        " bf16[1,4,1024,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %v),"
        ' custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={"workspace_size": "0"}'
    )
    text = "ENTRY %main (a: f32[2]) -> f32[2] {{\n{}\n}}"
    assert workspace(hlo.parse(text.format(line))) == 4 * 1024 * 64 * 4
    assert workspace(hlo.parse(text.format(line.replace("Backward", "")))) == 0


def test_bounds():
    cost = Cost(
        name="generator",
        times=1,
        flops=Counter({("", "student"): 3 * 8 * 459 * 10**12, ("", "teacher"): 8 * 459 * 10**12}),
        recomputed=8 * 459 * 10**12,
        cycles=Counter({(("", "student"), "Linear in Block", "forward"): 7 * 1.75e9}),
        unmeasured=0,
        unbounded=0,
        temporary=0,
        traffic=2 * 2765 * 10**9,
        sent=0.5 * 300e9,
        collectives={},
        largest_gather=0,
        estimate=False,
    )
    bounds = cost.bounds(CHIPS["v5p"], (2, 2, 2), 8)
    assert bounds == pytest.approx({"compute": 4.0, "memory": 2.0, "links": 0.5})
    assert cost.bounds(CHIPS["h200"], (8,), 8)["links"] == pytest.approx(0.5 * 300 / 450)
    assert replace(cost, estimate=True).bounds(CHIPS["h200"], (8,), 8)["links"] == pytest.approx(0.5 * 300 / 450 / 2)
    assert cost.bounds(CHIPS["cpu"], (8,), 8) is None
    assert cost.predicted(CHIPS["v5p"], (2, 2, 2)) == pytest.approx(7.0 + 0.5)
    assert replace(cost, unmeasured=1).predicted(CHIPS["v5p"], (2, 2, 2)) is None
    assert replace(cost, cycles=Counter()).predicted(CHIPS["v5p"], (2, 2, 2)) is None
