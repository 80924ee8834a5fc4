"""The counter against numbers worked by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from dollar_jax.models.attention import attention
from dollar_jax.models.stack import REMAT
from dollar_jax.plan.flops import count, owner

M, K, N = 8, 16, 32
MATMUL = 2 * M * K * N


def total(function, *shapes):
    jaxpr = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return count(jaxpr, lambda path: "all")["all"]


def layer(x, w):
    return jnp.tanh(x @ w)


def test_products():
    assert total(jnp.matmul, (M, K), (K, N)) == MATMUL
    assert total(jnp.matmul, (5, M, K), (5, K, N)) == 5 * MATMUL
    assert total(jax.jit(lambda x, w: x @ w + x @ w), (M, K), (K, N)) == 2 * MATMUL
    assert total(lambda x: jnp.exp(x) + 1, (M, K)) == 0


def test_what_no_result_depends_on_does_not_count():
    def function(x, w):
        lax.scan(lambda x, _: (layer(x, w), None), x, None, length=7)
        return jax.jit(lambda x: (x @ w, (2 * x) @ w))(x)[0]

    assert total(function, (M, K), (K, K)) == 2 * M * K * K
    # The loss itself is not asked for, and the gradient of a product needs no product of the forward pass.
    assert total(jax.grad(lambda x, w: (x @ w).sum(), argnums=(0, 1)), (M, K), (K, N)) == 2 * MATMUL


def test_convolutions():
    def convolve(x, kernel, stride=1, groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    image, kernel = (2, 10, 12, 6), (3, 3, 6, 8)
    forward = 2 * (2 * 10 * 12 * 8) * (3 * 3 * 6)
    assert total(convolve, image, kernel) == forward
    assert total(lambda x, k: convolve(x, k, groups=2), image, (3, 3, 3, 8)) == forward // 2
    assert total(lambda x, k: convolve(x, k, stride=2), image, kernel) == forward // 4
    # The gradient in the input puts zeros between the outputs, which nobody has to multiply; to the kernel's likewise.
    both = jax.value_and_grad(lambda x, k: convolve(x, k, stride=2).sum(), argnums=(0, 1))
    assert total(both, image, kernel) == pytest.approx(3 * forward // 4, rel=0.2)  # borders


def test_loops_and_branches():
    def scan(x, w):
        return lax.scan(lambda x, _: (layer(x, w), None), x, None, length=7)[0]

    assert total(scan, (M, K), (K, K)) == 7 * 2 * M * K * K
    assert total(lambda x, w: lax.map(lambda row: row[None] @ w, x), (M, K), (K, N)) == MATMUL

    def branch(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) + (2 * x) @ w)

    assert total(branch, (M, K), (K, N)) == 2 * MATMUL

    def loop(x, w):
        return lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)

    def shapes(*sides):
        return (jax.ShapeDtypeStruct(side, jnp.float32) for side in sides)

    counted = count(jax.make_jaxpr(loop)(*shapes((M, K), (K, K))), lambda path: "all")
    assert counted == {"all": 2 * M * K * K, None: 1}
    inner = jax.make_jaxpr(lambda x, w: lax.scan(lambda x, _: (loop(x, w), None), x, None, length=3))
    assert count(inner(*shapes((M, K), (K, K))), lambda path: "all") == {"all": 3 * 2 * M * K * K, None: 1}


@pytest.mark.parametrize(("remat", "factor"), [(False, 3), (True, 4)])
def test_gradients(remat, factor):
    body = jax.checkpoint(layer) if remat else layer

    def loss(x, ws):
        return lax.scan(lambda x, w: (body(x, w), None), x, ws)[0].sum()

    forward = 5 * 2 * M * K * K
    assert total(loss, (M, K), (5, K, K)) == forward
    assert total(jax.grad(loss, argnums=(0, 1)), (M, K), (5, K, K)) == factor * forward


def test_custom_gradients():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert total(product, (M, K), (K, N)) == MATMUL
    gradient = jax.value_and_grad(lambda x, w: product(x, w).sum(), argnums=(0, 1))
    assert total(gradient, (M, K), (K, N)) == 3 * MATMUL


def test_shares_of_a_mesh():
    mesh = AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rows = PartitionSpec("data")
    with jax.sharding.use_abstract_mesh(mesh):
        split = jax.shard_map(jnp.matmul, in_specs=(rows, None), out_specs=rows, check_vma=False)
        assert total(split, (M, K), (K, N)) == 2 * MATMUL  # the other axis of the mesh repeats it


def test_kernels():
    def kernel(x, w, y):
        y[...] = x[...] @ w[...]

    product = pl.pallas_call(
        kernel,
        grid=(4, 2),
        in_specs=[pl.BlockSpec((M // 4, K), lambda i, j: (i, 0)), pl.BlockSpec((K, N // 2), lambda i, j: (0, j))],
        out_specs=pl.BlockSpec((M // 4, N // 2), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((M, N), jnp.float32),
    )
    assert total(product, (M, K), (K, N)) == MATMUL


@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_attention(kernel):
    """Two products forward; with the logits computed again, four (blocks of XLA) or more (a kernel) backward."""
    b, n, h, d = 2, 512, 3, 64
    shape = (b, n, h, d)
    forward = 4 * b * n * n * h * d

    def attend(q, k, v):
        return attention(q, k, v, kernel=kernel)

    assert total(attend, shape, shape, shape) == forward
    gradient = jax.value_and_grad(lambda *x: attend(*x).sum(), argnums=(0, 1, 2))
    assert 3.5 * forward <= total(gradient, shape, shape, shape) <= 4.5 * forward


def test_products_that_cudnn_hides(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    b, n, m, h, d = 2, 128, 256, 3, 64
    q, k, v = (jax.ShapeDtypeStruct((b, size, h, d), jnp.bfloat16) for size in (n, m, m))

    def attend(*x):
        return attention(*x, kernel="cudnn").astype(jnp.float32).sum()

    for function, products in ((attend, 2), (jax.grad(attend, argnums=(0, 1, 2)), 2 + 5)):
        assert count(jax.make_jaxpr(function)(q, k, v), lambda path: "all") == {"all": 2 * products * b * n * m * h * d}


@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_attention_that_is_kept_is_not_computed_again(kernel):
    shape = b, n, h, d = 1, 512, 2, 64

    def gradient(remat):
        layer = jax.checkpoint(lambda *x: jnp.tanh(attention(*x, kernel=kernel)), policy=REMAT[remat])
        return total(jax.value_and_grad(lambda *x: layer(*x).sum(), argnums=(0, 1, 2)), shape, shape, shape)

    assert gradient("nothing_saveable") - gradient("attention_saveable") == 4 * b * n * n * h * d


def test_owners():
    label = owner(("teacher", "student"), ("consistency", "my_fork.losses:calm"))

    def loss(x, w):
        with jax.named_scope("consistency"), jax.named_scope("teacher"):
            target = layer(x, w)
        with jax.named_scope("my_fork.losses:calm"):
            y = jax.named_scope("student")(lambda x: lax.scan(lambda x, w: (layer(x, w), None), x, w[None])[0])(x)
        return ((y - target) ** 2).sum() + (x @ w).sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((M, K), (K, K))]
    one = 2 * M * K * K
    expected = {("consistency", "teacher"): 3, ("my_fork.losses:calm", "student"): 3, ("", "other"): 3}
    counted = count(jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(*shapes), label)
    assert {key: value / one for key, value in counted.items()} == expected


def test_the_innermost_owner_counts():
    label = owner(("teacher", "student"), ("consistency", "calm"))
    assert label("jit/transpose(jvp(consistency))/teacher/while/body/student/dot") == ("consistency", "student")
    assert label("consistency/jvp(calm)/student/teacher/x") == ("calm", "teacher")
    assert label("jit(students)/calming") == ("", "other")
