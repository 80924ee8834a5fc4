"""A linear layer that an adapter may change: y = x W + bias + (x A) B s (LoRA, arXiv 2106.09685)."""

import jax.numpy as jnp
from flax import nnx
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
        a, b = (getattr(self, name)[...].astype(y.dtype) for name in MATRICES)
        # The adapter's matrices are cast where they are used, and W is never changed: in bfloat16 it would swallow
        # small changes.
        return y + (x.astype(y.dtype) @ a) @ b * self.lora_scale[...].astype(y.dtype)
