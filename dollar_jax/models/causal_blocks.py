"""Layers and residual blocks that causal video autoencoders share."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dollar_jax.models.convolution import CausalConv, Stream, UpsamplingConv


class Layers(NamedTuple):
    """Constructors of the layers, with their common arguments bound."""

    conv: Callable[..., CausalConv]
    downsample: Callable[..., nnx.Conv]
    upsample: Callable[..., UpsamplingConv]
    linear: Callable[..., nnx.Linear]
    norm: Callable[..., nnx.Module]


def make_layers(
    norm: Callable[..., nnx.Module],
    *,
    dtype: DTypeLike,
    stacked: bool | None = None,
    zeros: bool = False,
    rngs: nnx.Rngs,
) -> Layers:
    """Layers that compute in `dtype`; `stacked` and `zeros` are those of `CausalConv`."""
    return Layers(
        conv=partial(CausalConv, dtype=dtype, stacked=stacked, zeros=zeros, rngs=rngs),
        downsample=partial(nnx.Conv, kernel_size=(3, 3), strides=2, padding=((0, 1), (0, 1)), dtype=dtype, rngs=rngs),
        upsample=partial(UpsamplingConv, dtype=dtype, rngs=rngs),
        linear=partial(nnx.Linear, dtype=dtype, rngs=rngs),
        norm=norm,
    )


class ResnetBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a linear shortcut if the width changes."""

    def __init__(self, layers: Layers, norm: Callable[[int], nnx.Module], features: int, new_features: int):
        self.norm1 = norm(features)
        self.conv1 = layers.conv(features, new_features)
        self.norm2 = norm(new_features)
        self.conv2 = layers.conv(new_features, new_features)
        self.shortcut = nnx.data(None if features == new_features else layers.linear(features, new_features))

    def __call__(
        self, x: Float[Array, "b f h w c"], stream: Stream, *condition: Float[Array, "b f y x z"]
    ) -> Float[Array, "b f h w c_"]:
        """`condition` is a further argument of the norms, or nothing."""
        y = self.conv1(jax.nn.silu(self.norm1(x, *condition)), stream)
        y = self.conv2(jax.nn.silu(self.norm2(y, *condition)), stream)
        return y + (x if self.shortcut is None else self.shortcut(x))


def residual_blocks(layers: Layers, norm: Callable, features: int, new_features: int, count: int) -> list[ResnetBlock]:
    """`count` blocks; the first block changes the width."""
    return [ResnetBlock(layers, norm, new_features if i else features, new_features) for i in range(count)]
