"""Attention as one function, with a kernel for each kind of accelerator:

xla      any device: blocks of queries
cudnn    cuDNN's flash attention, for NVIDIA GPUs
splash   JAX's splash attention, for TPUs

Under a mesh, each device holds a share of the queries (some videos, and some tokens of each video). It gathers all keys
and values of its videos and attends to them, so the result is exact with every kernel.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from dollar_jax.errors import UserError
from dollar_jax.sharding import BATCH, CONTEXT, fit

SAVED = "attention"  # checkpoint name of what a gradient needs of the attention; JAX gives cuDNN's kernel none
QUERIES = 128  # largest block of queries, so that the logits fit into a CPU's cache


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
    """softmax(scale q k^T + bias) v for each head; the softmax is computed in float32.

    Args:
      q: queries.
      k: keys.
      v: values.
      bias: added to the logits. With `bias` or `mask`, the kernel is always xla, and XLA chooses the sharding.
      mask: False for keys to ignore; None: no key is ignored.
      scale: factor on the logits, by default 1/sqrt(d).
      length: number of keys that are not padding; the padding is at the end and must be finite.
      kernel: one of `KERNELS`; None: the fastest kernel for this platform and dtype.
    Raises:
      UserError: the kernel does not exist.
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
    # check_vma: kernels do not declare over which mesh axes their results vary.
    return jax.shard_map(attend, in_specs=(queries, keys, keys), out_specs=queries, check_vma=False)(q, k, v)


def _platform() -> str:
    """Platform of the function being traced: that of its mesh's devices, which may be another machine's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _default(q: Float[Array, "b n h d"]) -> str:
    """The fastest kernel for these queries. cuDNN's needs 16-bit numbers, and d a multiple of 8 up to 128."""
    if _platform() == "tpu":
        return "splash"
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
    return "cudnn" if _platform() == "gpu" and fits else "xla"


def _xla(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], length: int, scale: float
) -> Float[Array, "b n h d"]:
    return checkpoint_name(_blocks(q, k[:, :length], v[:, :length], None, None, scale), SAVED)


def _cudnn(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], length: int, scale: float
) -> Float[Array, "b n h d"]:
    """Pads queries and keys to even numbers: JAX refuses the gradient of odd numbers, as if there were a bias."""
    n = q.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = None if length == k.shape[1] else jnp.full(len(k), length, jnp.int32)
    mixed = jax.nn.dot_product_attention(q, k, v, scale=scale, key_value_seq_lengths=lengths, implementation="cudnn")
    return mixed[:, :n]


def _splash(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], length: int, scale: float
) -> Float[Array, "b n h d"]:
    from dollar_jax.models.splash import splash  # a second of imports, for TPUs only

    return splash(q * scale, k[:, :length], v[:, :length], saved=SAVED, interpret=_platform() != "tpu")


KERNELS = {"xla": _xla, "cudnn": _cudnn, "splash": _splash}
FORWARD_MODE = "xla"  # the kernel with a forward-mode derivative: the others define a backward pass alone


def _blocks(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    bias: Float[Array, "#b h n m"] | None,
    mask: Bool[Array, "b m"] | None,
    scale: float,
) -> Float[Array, "b n h d"]:
    """Attention in blocks of at most `QUERIES` queries, which takes the memory of one block's logits: the backward pass
    recomputes them. On a CPU, blocks are also twice as fast as all queries at once.
    """
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
    """Attention of one block of queries. The division by the softmax's sum is last, where it takes fewest numbers."""
    logits = jnp.einsum("bhnd,bhmd->bhnm", q * scale, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (mixed / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
