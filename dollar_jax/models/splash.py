"""Splash attention, JAX's kernel for TPUs, fed so that heads of 64 waste none of it."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

LANES = 128
PART = 512  # keys at a time in the gradient
# Most bytes of one feature in a block. The larger, the fewer instructions a logit, and the fewer partial gradients of
# the queries, one for each block of keys; larger ones do not fit into the vector memory of a v5p or v5e.
QUERIES, KEYS = 2048, 5120
FEATURES = 16  # rows of a tile of bfloat16


def splash(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], interpret: bool
) -> Float[Array, "b n h d"]:
    """softmax(q k^T) v per head.

    Args:
      q: queries, scaled.
      k: keys.
      v: values.
      interpret: as JAX operations, on a machine without TPU.
    """
    (_, n, heads, _), m = q.shape, k.shape[1]
    queries, keys = _block(n, QUERIES // q.dtype.itemsize, LANES), _block(m, KEYS // q.dtype.itemsize, PART)
    if m % keys:
        q, k = _hide(q, k, keys)
    # A mapped axis runs on both cores of a chip that has two; the gradient alone would leave one idle.
    groups = math.gcd(heads, 2)
    q, k, v = (
        rearrange(_pad(x, block), "b n (g h) d -> (b g) h n d", g=groups)
        for x, block in ((q, queries), (k, keys), (v, keys))
    )
    mixed = jax.vmap(_kernel(*q.shape[1:3], k.shape[2], queries, keys, interpret))(q, k, v)
    return rearrange(mixed, "(b g) h n d -> b n (g h) d", g=groups)[:, :n]


def _kernel(heads: int, n: int, m: int, queries: int, keys: int, interpret: bool) -> library.SplashAttentionKernel:
    """The library's kernel, (q [h n e], k [h m e], v [h m d]) -> [h n d], for blocks that divide n and m.

    What was weighed, by instruction bundles for 1024 logits in the compiler's schedules for a v5p (v6e is alike) and by
    its memory analysis, 30 heads of 64, about 10000 tokens, bfloat16:

      layout       the sequence in the lanes: 303 MB for the gradient; heads of 64 there would be padded to 128, 535 MB
      gradient     fused: 11.1 bundles, else 7.0 + 8.8; its partial gradients of the queries take 75 MB a block of keys
      blocks       1024 x 2560 forwards by halves: 4.9; 896 x 896: 6.7; backwards by 512: 10.0, halves: 10.3
    """
    minor = library.QKVLayout.SEQ_MINOR
    sizes = library.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=keys // 2,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=PART,
        use_fused_bwd_kernel=True,
        q_layout=minor,
        k_layout=minor,
        v_layout=minor,
    )
    mask = masks.MultiHeadMask([masks.FullMask((n, m))] * heads)
    return library.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)


def _hide(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], block: int
) -> tuple[Float[Array, "b n h e"], Float[Array, "b padded h e"]]:
    """Keys padded to whole blocks, and features that take the padding out of every softmax: queries have 1 where it has
    the lowest number. That costs 1 % of the forward pass; a mask in the kernel 9 to 27 %: it is applied to every block.
    """
    one = jnp.zeros((*q.shape[:3], FEATURES), q.dtype).at[..., 0].set(1)
    padded = _pad(k, block)
    lowest = jnp.zeros((*padded.shape[:3], FEATURES), k.dtype).at[:, k.shape[1] :, :, 0].set(jnp.finfo(k.dtype).min / 2)
    return jnp.concatenate([q, one], axis=-1), jnp.concatenate([padded, lowest], axis=-1)


def _block(length: int, most: int, step: int) -> int:
    """The size of equal blocks for `length` tokens, a multiple of `step`, with little padding."""
    count = math.ceil(length / (most // step * step))
    return math.ceil(length / count / step) * step


def _pad(x: Float[Array, "b n h d"], block: int) -> Float[Array, "b padded h d"]:
    """Zeros after the tokens up to a multiple of `block`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
