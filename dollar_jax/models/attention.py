"""Attention behind one function, so that a kernel can be swapped without touching a network."""

import jax
from jaxtyping import Array, Bool, Float


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    bias: Float[Array, "#b h n m"] | None = None,
    mask: Bool[Array, "b m"] | None = None,
    scale: float | None = None,
) -> Float[Array, "b n h d"]:
    """softmax(scale q k^T + bias) v per head; the softmax in float32.

    Args:
      q: queries.
      k: keys.
      v: values.
      bias: added to the logits.
      mask: which keys exist; None for all.
      scale: 1/sqrt(d) unless given.
    """
    if mask is not None:
        mask = mask[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale)
