"""A linear layer that an adapter may change: y = x W + bias + (x A) B s (LoRA, arXiv 2106.09685)."""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

MATRICES = ("lora_a", "lora_b")  # A [in, rank] and B [rank, out]
SCALE = "lora_scale"  # s


class Linear(nnx.Linear):
    """`nnx.Linear`; where its parameters hold an adapter (`models.lora.attach`), with the adapter's term."""

    def add_adapter(self) -> None:
        """Makes room for the parameters of an adapter, which have a shape only when they are merged in."""
        for name in (*MATRICES, SCALE):
            setattr(self, name, nnx.Param(jnp.zeros(())))

    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch m"]:
        y = super().__call__(x)
        if not hasattr(self, SCALE):
            return y
        a, b, scale = self._adapter(y.dtype)
        return y + (x.astype(y.dtype) @ a) @ b * scale

    def to_heads(self, x: Float[Array, "b n c"], heads: int) -> Float[Array, "b n h d"]:
        """The layer's outputs as heads of attention.

        The product makes heads, in the order that the attention wants: to split its result moves every number once more
        on a TPU, whose tiles have 128 features.
        """
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], self._bias()), dtype=self.dtype)
        y = jnp.einsum("bnc,chd->bnhd", x, _split(kernel, heads))
        y = y if bias is None else y + _split(bias, heads)[None, None]
        if not hasattr(self, SCALE):
            return y
        a, b, scale = self._adapter(y.dtype)
        return y + jnp.einsum("bnr,rhd->bnhd", x @ a, _split(b, heads)) * scale

    def from_heads(self, x: Float[Array, "b n h d"]) -> Float[Array, "b n m"]:
        """The layer's outputs for heads of attention, which are not merged before the product; see `to_heads`."""
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], self._bias()), dtype=self.dtype)
        y = jnp.einsum("bnhd,hdm->bnm", x, rearrange(kernel, "(h d) m -> h d m", h=x.shape[2]))
        y = y if bias is None else y + bias[None, None]
        if not hasattr(self, SCALE):
            return y
        a, b, scale = self._adapter(y.dtype)
        return y + jnp.einsum("bnhd,hdr->bnr", x, rearrange(a, "(h d) r -> h d r", h=x.shape[2])) @ b * scale

    def _bias(self) -> Float[Array, " m"] | None:
        return None if self.bias is None else self.bias[...]

    def _adapter(self, dtype: DTypeLike) -> tuple[Float[Array, "n r"], Float[Array, "r m"], Float[Array, ""]]:
        """A, B and s, cast where they are used. W is never changed: in bfloat16 it would swallow small changes."""
        return tuple(jnp.asarray(getattr(self, name)[...], dtype) for name in (*MATRICES, SCALE))


def _split(x: Float[Array, "*rows m"], heads: int) -> Float[Array, "*rows h d"]:
    return rearrange(x, "... (h d) -> ... h d", h=heads)
