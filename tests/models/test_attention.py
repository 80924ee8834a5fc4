"""Attention against its definition; kernels that cannot run here are lowered or compiled for machines that are not."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dollar_jax.errors import UserError
from dollar_jax.models.attention import FORWARD_MODE, QUERIES, attention
from dollar_jax.sharding import AXES, BATCH, CONTEXT, make_mesh

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


@pytest.mark.parametrize("rows", [5, QUERIES + 7])
def test_the_forward_mode_derivative_against_float64(rows):
    """o' = P v' + (P * S') v - (P * S') 1 o with P = softmax(S), S' = scale (q' k^T + q k'^T). rms error below 1e-6."""
    rng = np.random.default_rng(0)
    q, k, v, *tangents = (rng.normal(size=(2, rows, 2, 8)) for _ in range(6))
    dq, dk, dv = tangents
    scores, change = (
        0.3 * sum(np.einsum("bnhd,bmhd->bhnm", *pair) for pair in pairs) for pairs in ([(q, k)], [(dq, k), (q, dk)])
    )
    weights = np.exp(scores)
    weights /= weights.sum(-1, keepdims=True)
    moved = weights * (change - (weights * change).sum(-1, keepdims=True))
    wanted = np.einsum("bhnm,bmhd->bnhd", weights, dv) + np.einsum("bhnm,bmhd->bnhd", moved, v)
    arrays = [tuple(jnp.asarray(x, jnp.float32) for x in part) for part in ((q, k, v), tangents)]
    _, got = jax.jvp(partial(attention, scale=0.3, kernel=FORWARD_MODE), *arrays)
    assert np.sqrt(np.mean((got - wanted) ** 2)) < 1e-6


def test_the_memory_of_many_queries_is_that_of_a_block():
    def memory(rows):
        x = jax.ShapeDtypeStruct((1, rows, 2, 8), jnp.float32)
        gradient = jax.grad(lambda *args: attention(*args).sum(), (0, 1, 2))
        return jax.jit(gradient).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    rows = 4096
    assert memory(rows) < 2 * rows * rows  # bytes: the logits of both heads alone would be 8 rows^2


def pulled(function, q, k, v, cotangent):
    """The result and the gradients."""
    result, pull = jax.vjp(function, q, k, v)
    return result, *pull(cotangent)


def test_unknown_kernels_are_refused():
    with pytest.raises(UserError, match="xla, cudnn, splash, not 'flash'"):
        attention(*inputs(), kernel="flash")


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_padding_is_not_attended_to(with_bias, with_mask):
    q, k, v = inputs()
    bias = (
        np.random.default_rng(0).normal(size=(1, H, N, M)).astype(np.float32) if with_bias else np.zeros((1, 1, 1, M))
    )
    mask = np.arange(M)[None] < np.array([[3], [6]]) if with_mask else np.ones((B, M), bool)
    given = {"bias": jnp.asarray(bias) if with_bias else None, "mask": jnp.asarray(mask) if with_mask else None}
    wanted = by_hand(q, k[:, :5], v[:, :5], bias=bias[..., :5], mask=mask[:, :5])
    np.testing.assert_allclose(attention(q, k, v, **given, length=5), wanted, atol=1e-5)


@pytest.mark.parametrize(("b", "n", "m", "h", "length"), [(2, 600, 1100, 1, 1050), (1, 130, 512, 4, None)])
def test_splash(b, n, m, h, length):
    """Several blocks of queries and keys, the last of them padded; one block of keys that is full."""
    keys = jax.random.split(jax.random.key(2), 4)
    q, cotangent = (3 * jax.random.normal(key, (b, n, h, 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (b, m, h, 8)) for key in keys[2:])

    @jax.jit
    def both(*args):
        kernels = [partial(attention, scale=0.4, length=length, kernel=kernel) for kernel in ("splash", "xla")]
        return [pulled(kernel, *args) for kernel in kernels]

    for i, (got, wanted) in enumerate(zip(*both(q, k, v, cotangent), strict=True)):
        np.testing.assert_allclose(got, wanted, atol=(1e-4 if i else 1e-5) * float(jnp.abs(wanted).max()))


def on(platform, q, **kwargs):
    """The lowered gradient of attention on a machine that is not here. Traced under a mesh of its devices, which choose
    the kernel; lowered without one, because JAX 0.12 wants real devices under a mesh to lower cuDNN's calls.
    """
    device = AbstractDevice(device_kind="", num_cores=1, platform={"cuda": "gpu"}.get(platform, platform))
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 1, 1), AXES, abstract_device=device)):
        gradient = jax.make_jaxpr(lambda q: pulled(lambda *x: attention(*x, **kwargs), q, q, q, q))(q)
    return jax.jit(jaxpr_as_fun(gradient)).trace(q).lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def cudnn(monkeypatch):
    """As if it were installed."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    ("n", "length", "padding"), [(130, None, "NO_MASK"), (130, 100, "PADDING"), (131, None, "PADDING")]
)
def test_gpus_use_cudnn_in_16_bits(n, length, padding):
    text = on("cuda", jax.ShapeDtypeStruct((2, n, 3, 64), jnp.bfloat16), length=length)
    assert "__cudnn$fmhaSoftmax(" in text
    assert "__cudnn$fmhaSoftmaxBackward(" in text
    assert set(re.findall(r"mask_type\W+22: \W+22(\w+?)\W", text)) == {padding}


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    ("dtype", "d", "masked"), [("float32", 64, False), ("bfloat16", 4, False), ("bfloat16", 64, True)]
)
def test_gpus_use_xla_where_cudnn_cannot(dtype, d, masked):
    mask = jnp.ones((2, 131), bool) if masked else None
    assert "__cudnn" not in on("cuda", jax.ShapeDtypeStruct((2, 131, 3, d), dtype), mask=mask)


@pytest.mark.parametrize(("chip", "sizes"), [("v5p:2x2x2", (1, 2, 4)), ("v6e:2x4", (1, 8, 1))])
def test_tpus_use_splash(chip, sizes, monkeypatch):
    """Compiled for the chip: two kernels; all that is gathered is keys and values, over the context."""
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # tests run side by side
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(chip, platform="tpu").devices
    mesh = make_mesh(ConfigDict(dict(zip(AXES, sizes, strict=True))), devices)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH, CONTEXT))
    q = jax.ShapeDtypeStruct((8, 768, 2, 64), jnp.bfloat16, sharding=sharding)
    gradient = jax.jit(lambda *x: pulled(lambda *y: attention(*y, length=700), *x), out_shardings=sharding)
    with jax.set_mesh(mesh):
        text = gradient.lower(q, q, q, q).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    gathered = re.findall(r" = (\w+\[[\d,]*\])\S* all-gather\(", text)
    assert gathered == (["bf16[4,768,2,64]"] * 2 if sizes[2] > 1 else [])


def test_its_forward_mode_derivative_on_a_tpu_takes_the_memory_of_two(monkeypatch):
    """At the paper's size, 9,826 tokens, whose logits would take 11.6 GB: one loop over blocks of queries."""
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc("v5p:2x2x1", platform="tpu").devices
    mesh = make_mesh(ConfigDict(dict(zip(AXES, (1, 4, 1), strict=True))), devices)
    x = jax.ShapeDtypeStruct((4, 9826, 30, 64), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(BATCH)))
    forward = partial(attention, kernel=FORWARD_MODE)
    with jax.set_mesh(mesh):
        alone = jax.jit(forward).lower(x, x, x).compile()
        both = jax.jit(lambda *x: jax.jvp(forward, x[:3], x[3:])).lower(*6 * [x]).compile()
    assert both.as_text().count(" while(") == 1
    memory = [compiled.memory_analysis().temp_size_in_bytes for compiled in (alone, both)]
    assert memory[1] < 2.3 * memory[0] < 1e9


MESHES = """
import functools, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from ml_collections import ConfigDict
from dollar_jax.models.attention import attention
from dollar_jax.sharding import AXES, make_mesh

def gradients(kernel, length):
    def run(q, k, v, cotangent):
        result, pull = jax.vjp(lambda *x: attention(*x, length=length, kernel=kernel), q, k, v)
        return result, *pull(cotangent)
    return jax.jit(run)

@functools.cache
def reference(shape, length):
    args = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 4)]
    return args, gradients("xla", length)(*args)

def check(sizes, shape, kernel, length):
    args, wanted = reference(shape, length)
    with jax.set_mesh(make_mesh(ConfigDict(dict(zip(AXES, sizes))))):
        got = gradients(kernel, length)(*map(np.asarray, args))
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * float(jnp.abs(y).max()))
    print(sizes, shape, kernel, length, "->", got[0].sharding.shard_shape(shape))

for sizes in (8, 1, 1), (1, 8, 1), (1, 2, 4), (2, 2, 2):
    check(sizes, (8, 160, 2, 4), "xla", 150)
check((1, 2, 4), (1, 162, 2, 4), "xla", None)
check((2, 2, 2), (8, 160, 2, 4), "splash", 150)
"""


def test_meshes():
    """The same numbers and gradients on every mesh, each device with its share of the queries where they divide."""
    flags = os.environ["XLA_FLAGS"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    run = subprocess.run([sys.executable, "-c", MESHES], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "(8, 1, 1) (8, 160, 2, 4) xla 150 -> (1, 160, 2, 4)",
        "(1, 8, 1) (8, 160, 2, 4) xla 150 -> (1, 160, 2, 4)",
        "(1, 2, 4) (8, 160, 2, 4) xla 150 -> (4, 40, 2, 4)",
        "(2, 2, 2) (8, 160, 2, 4) xla 150 -> (2, 80, 2, 4)",
        "(1, 2, 4) (1, 162, 2, 4) xla None -> (1, 162, 2, 4)",
        "(2, 2, 2) (8, 160, 2, 4) splash 150 -> (2, 80, 2, 4)",
    ]
