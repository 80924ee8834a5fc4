"""Attention behind one function, so that a kernel can be swapped without touching a network."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Bool, Float

QUERIES = 128  # at most at a time: a CPU's cache holds their logits


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    bias: Float[Array, "#b h n m"] | None = None,
    mask: Bool[Array, "b m"] | None = None,
    scale: float | None = None,
) -> Float[Array, "b n h d"]:
    """softmax(scale q k^T + bias) v per head; the softmax in float32.

    Many queries go in blocks, whose logits the gradient recomputes: the memory is that of one block. On a CPU that is
    twice as fast as all at once, too.

    Args:
      q: queries.
      k: keys.
      v: values.
      bias: added to the logits.
      mask: which keys exist; None for all.
      scale: 1/sqrt(d) unless given.
    """
    mask = None if mask is None else mask[:, None, None, :]
    if bias is not None or q.shape[1] <= QUERIES:
        return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale)
    length = q.shape[1]
    count = math.ceil(length / QUERIES)
    blocks = jnp.pad(q, ((0, 0), (0, -length % count), (0, 0), (0, 0)))
    blocks = rearrange(blocks, "b (i n) h d -> i b h n d", i=count)
    keys, values = (rearrange(x, "b m h d -> b h m d") for x in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    attend = jax.checkpoint(partial(_attend, k=keys, v=values, mask=mask, scale=scale), prevent_cse=False)
    return rearrange(lax.map(attend, blocks), "i b h n d -> b (i n) h d")[:, :length]


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
