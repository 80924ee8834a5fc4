"""Attention behind one function: which kernel computes it is a matter of the accelerator, not of the network.

xla      anywhere: blocks of queries
cudnn    cuDNN's flash attention, for NVIDIA's GPUs
splash   JAX's splash attention, for TPUs

Under a mesh every device attends from its share of the queries (of videos, and of the tokens of one video) to all keys
of its videos, which it gathers: exact, whatever the kernel.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Bool, Float

from dollar_jax.errors import UserError
from dollar_jax.sharding import BATCH, CONTEXT, fit

QUERIES = 128  # at most at a time: a CPU's cache holds their logits


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    bias: Float[Array, "#b h n m"] | None = None,
    mask: Bool[Array, "b m"] | None = None,
    scale: float | None = None,
    *,
    length: int | None = None,
    kernel: str | None = None,
) -> Float[Array, "b n h d"]:
    """softmax(scale q k^T + bias) v per head; the softmax in float32.

    Args:
      q: queries.
      k: keys.
      v: values.
      bias: added to the logits. With it or `mask`, XLA computes and shards.
      mask: which keys exist; None for all.
      scale: 1/sqrt(d) unless given.
      length: how many of the keys exist, if those at the end are padding; what they hold must be finite.
      kernel: one of `KERNELS`; None is the fastest for this platform and dtype.
    Raises:
      UserError: there is no such kernel.
    """
    kernel = _default(q) if kernel is None else kernel
    if kernel not in KERNELS:
        raise UserError(f"the attention kernel is one of {', '.join(KERNELS)}, not {kernel!r}")
    length = k.shape[1] if length is None else length
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if bias is not None or mask is not None:
        bias = None if bias is None else bias[..., :length]
        mask = None if mask is None else mask[:, :length]
        return _blocks(q, k[:, :length], v[:, :length], bias, mask, scale)
    attend = partial(KERNELS[kernel], length=length, scale=scale)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return attend(q, k, v)
    queries, keys = fit(q.shape, (BATCH, CONTEXT), mesh), fit(k.shape, (BATCH,), mesh)
    # Kernels do not say over which axes of the mesh their results vary.
    return jax.shard_map(attend, in_specs=(queries, keys, keys), out_specs=queries, check_vma=False)(q, k, v)


def _platform() -> str:
    """Where the function being traced will run: on the devices of its mesh, which may be another machine's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _default(q: Float[Array, "b n h d"]) -> str:
    """The fastest kernel that there is for these queries. cuDNN's takes 16-bit numbers and multiples of 8 up to 128."""
    if _platform() == "tpu":
        return "splash"
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
    return "cudnn" if _platform() == "gpu" and fits else "xla"


def _xla(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], length: int, scale: float
) -> Float[Array, "b n h d"]:
    return _blocks(q, k[:, :length], v[:, :length], None, None, scale)


def _cudnn(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], length: int, scale: float
) -> Float[Array, "b n h d"]:
    """In even numbers of queries and keys: JAX refuses the gradient of odd ones (it mistakes no bias for one)."""
    n = q.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = None if length == k.shape[1] else jnp.full(len(k), length, jnp.int32)
    mixed = jax.nn.dot_product_attention(q, k, v, scale=scale, key_value_seq_lengths=lengths, implementation="cudnn")
    return mixed[:, :n]


def _splash(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], length: int, scale: float
) -> Float[Array, "b n h d"]:
    from dollar_jax.models.splash import splash  # a second of imports, for TPUs only

    return splash(q * scale, k[:, :length], v[:, :length], interpret=_platform() != "tpu")


KERNELS = {"xla": _xla, "cudnn": _cudnn, "splash": _splash}


def _blocks(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    bias: Float[Array, "#b h n m"] | None,
    mask: Bool[Array, "b m"] | None,
    scale: float,
) -> Float[Array, "b n h d"]:
    """Many queries go in blocks, whose logits the gradient recomputes: the memory is that of one block. On a CPU that
    is twice as fast as all at once, too."""
    mask = None if mask is None else mask[:, None, None, :]
    if bias is not None or q.shape[1] <= QUERIES:
        return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale)
    n = q.shape[1]
    count = math.ceil(n / QUERIES)
    blocks = jnp.pad(q, ((0, 0), (0, -n % count), (0, 0), (0, 0)))
    blocks = rearrange(blocks, "b (i n) h d -> i b h n d", i=count)
    keys, values = (rearrange(x, "b m h d -> b h m d") for x in (k, v))
    attend = jax.checkpoint(partial(_attend, k=keys, v=values, mask=mask, scale=scale), prevent_cse=False)
    return rearrange(lax.map(attend, blocks), "i b h n d -> b (i n) h d")[:, :n]


def _attend(
    q: Float[Array, "b h n d"],
    k: Float[Array, "b h m d"],
    v: Float[Array, "b h m d"],
    mask: Bool[Array, "b 1 1 m"] | None,
    scale: float,
) -> Float[Array, "b h n d"]:
    """Divides by the softmax's sum after the product with the values, where there is less to divide."""
    logits = jnp.einsum("bhnd,bhmd->bhnm", q * scale, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (mixed / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
