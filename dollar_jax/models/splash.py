"""Splash attention, JAX's kernel for TPUs, with a layout that wastes nothing for heads of width 64."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

LANES = 128
PART = 512  # keys that the gradient processes at a time
# Largest number of bytes of one feature in a block. Larger blocks take fewer instructions per logit, and make fewer
# partial gradients of the queries (one for each block of keys). Blocks larger than these do not fit into the vector
# memory of a v5p or v5e.
QUERIES, KEYS = 2048, 5120
WIDE_QUERIES, WIDE_KEYS = 1024, 4096  # of heads wider than 64
FEATURES = 16  # rows of a tile of bfloat16


def splash(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], saved: str, interpret: bool
) -> Float[Array, "b n h d"]:
    """softmax(q k^T) v for each head.

    Args:
      q: queries, scaled.
      k: keys.
      v: values.
      saved: checkpoint name of the result and its normalisation, which a gradient needs.
      interpret: run the kernel as JAX operations, on a machine without TPU.
    """
    (_, n, heads, width), m = q.shape, k.shape[1]
    most_queries, most_keys = (QUERIES, KEYS) if width <= 64 else (WIDE_QUERIES, WIDE_KEYS)
    queries = _block(n, most_queries // q.dtype.itemsize, LANES)
    keys = _block(m, most_keys // q.dtype.itemsize, PART)
    if m % keys:
        q, k = _hide(q, k, keys)
    # A mapped axis uses both cores of a chip with two; without it, the gradient would leave one core idle.
    groups = math.gcd(heads, 2)
    q, k, v = (
        rearrange(_pad(x, block), "b n (g h) d -> (b g) h n d", g=groups)
        for x, block in ((q, queries), (k, keys), (v, keys))
    )
    mixed = jax.vmap(_kernel(*q.shape[1:3], k.shape[2], queries, keys, saved, interpret))(q, k, v)
    return rearrange(mixed, "(b g) h n d -> b n (g h) d", g=groups)[:, :n]


def _kernel(
    heads: int, n: int, m: int, queries: int, keys: int, saved: str, interpret: bool
) -> library.SplashAttentionKernel:
    """The library's kernel, (q [h n e], k [h m e], v [h m d]) -> [h n d], for blocks that divide n and m.

    The settings were chosen by two measures of the compiler for a v5p (v6e is similar): instruction bundles for 1024
    logits in its schedules, and its memory analysis. 30 heads of 64, about 10000 tokens, bfloat16:

      layout       sequence in the lanes: 303 MB for the gradient; heads in the lanes, padded from 64 to 128: 535 MB
      gradient     fused: 11.1 bundles, separate: 7.0 + 8.8; partial gradients of the queries: 75 MB per block of keys
      blocks       forward, 1024 x 2560 in halves: 4.9 bundles, 896 x 896: 6.7; backward, in 512: 10.0, in halves: 10.3
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
    return library.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=saved,
        interpret=interpret,
    )


def _hide(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], block: int
) -> tuple[Float[Array, "b n h e"], Float[Array, "b padded h e"]]:
    """Pads keys to whole blocks, and adds features that remove the padding from every softmax.

    In the first added feature, queries have 1, padded keys the lowest number, and real keys 0. That costs 1 % of the
    forward pass. A mask in the kernel would cost 9 to 27 %, because it is applied to every block.
    """
    one = jnp.zeros((*q.shape[:3], FEATURES), q.dtype).at[..., 0].set(1)
    padded = _pad(k, block)
    lowest = jnp.zeros((*padded.shape[:3], FEATURES), k.dtype).at[:, k.shape[1] :, :, 0].set(jnp.finfo(k.dtype).min / 2)
    return jnp.concatenate([q, one], axis=-1), jnp.concatenate([padded, lowest], axis=-1)


def _block(length: int, most: int, step: int) -> int:
    """Size of equal blocks that cover `length` tokens with little padding; a multiple of `step`, `most` at most."""
    count = math.ceil(length / (most // step * step))
    return math.ceil(length / count / step) * step


def _pad(x: Float[Array, "b n h d"], block: int) -> Float[Array, "b padded h d"]:
    """Pads the tokens with zeros to a multiple of `block`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
