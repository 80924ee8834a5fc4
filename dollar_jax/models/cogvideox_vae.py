"""CogVideoX's causal 3D variational autoencoder.

A video of 4k + 1 frames becomes k + 1 latent frames: one for the first frame, one for each four frames after it. Long
videos are processed in chunks of frames; each causal convolution keeps the last frames of a chunk for the next chunk.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dollar_jax.errors import UserError
from dollar_jax.models.causal_blocks import Layers, ResnetBlock, make_layers, residual_blocks
from dollar_jax.models.convolution import Stream, group_frames, in_chunks, ungroup_frames
from dollar_jax.models.network import Network, from_module
from dollar_jax.types import Latent

Features = Float[Array, "b f h w c"]
NewFeatures = Float[Array, "b f_ h_ w_ c_"]
Condition = Float[Array, "b f y x z"]  # the latents, at the frames of the features


def build(
    *,
    in_channels: int = 3,
    out_channels: int = 3,
    block_out_channels: Sequence[int] = (128, 256, 256, 512),
    latent_channels: int = 16,
    layers_per_block: int = 3,
    norm_eps: float = 1e-6,
    norm_num_groups: int = 32,
    temporal_compression_ratio: int = 4,
    patch_size: Sequence[int] = (1, 1, 1),
    exactly_causal: bool = False,
    encode_chunk: int | None = 8,
    decode_chunk: int | None = 2,
    dtype: DTypeLike = jnp.float32,
    stacked: bool | None = None,
) -> Network:
    """The autoencoder: `apply(params, video, method="encode")` and `apply(params, latents, method="decode")`.

    Arguments with a name of diffusers' config have the same meaning. The others are

    Args:
      patch_size: (frames, rows, columns) of the patches that the first layer takes as channels and the last layer
        returns as channels, for cheap networks on small videos. (1, 1, 1) is the public architecture.
      exactly_causal: False is the public network: group norms compute statistics over all frames of a chunk, so that
        results depend on the chunk sizes, and an even number of latent frames is decoded without a lone first frame.
        True: group norms compute statistics of each frame alone, and the first frame always stands alone; chunk sizes
        then do not change results, and an image has the same latent as the first frame of a video.
      encode_chunk, decode_chunk: number of frames encoded at a time and of latent frames decoded at a time; the first
        chunk also takes the remainder. None: all at once.
      dtype: dtype of the computation; parameters and results are float32.
      stacked: how convolutions are computed, see `convolution.convolve`. None: the fast way on JAX's backend.

    Raises:
      UserError: the sizes do not fit together.
    """
    levels = int(math.log2(temporal_compression_ratio))
    if 2**levels != temporal_compression_ratio or levels > len(block_out_channels) - 1:
        raise UserError(
            f"temporal_compression_ratio {temporal_compression_ratio} must be a power of two that "
            f"{len(block_out_channels) - 1} downsamplings reach: give block_out_channels more levels"
        )
    if any(width % norm_num_groups for width in block_out_channels):
        raise UserError(f"norm_num_groups {norm_num_groups} must divide all of block_out_channels {block_out_channels}")
    ratio = temporal_compression_ratio * patch_size[0]
    if encode_chunk is not None and encode_chunk % ratio:
        raise UserError(f"encode_chunk {encode_chunk} must be a multiple of the {ratio} frames of a latent frame")

    def make(rngs: nnx.Rngs) -> Autoencoder:
        norm = partial(GroupNorm, groups=norm_num_groups, per_frame=exactly_causal, dtype=dtype, rngs=rngs)
        layers = make_layers(norm, stacked=stacked, dtype=dtype, rngs=rngs)
        pixels = math.prod(patch_size)
        widths = tuple(block_out_channels)
        return Autoencoder(
            Encoder(layers, in_channels * pixels, widths, latent_channels, layers_per_block, norm_eps, levels),
            Decoder(layers, latent_channels, widths, out_channels * pixels, layers_per_block, levels),
            patch_size=tuple(patch_size),
            ratio=(ratio, *(size * 2 ** (len(widths) - 1) for size in patch_size[1:])),
            exactly_causal=exactly_causal,
            chunks=(encode_chunk and encode_chunk // patch_size[0], decode_chunk),
        )

    return from_module(make)


class GroupNorm(nnx.GroupNorm):
    """Group normalisation with statistics over all frames, or over each frame alone."""

    def __init__(self, features: int, eps: float, *, groups: int, per_frame: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(features, groups, epsilon=eps, dtype=dtype, rngs=rngs)
        self.per_frame = per_frame

    def __call__(self, x: Features) -> Features:
        x = x.astype(jnp.float32)
        mean, square = self._means(x), self._means(x**2)
        scale, bias = (weight[...].reshape(1, 1, 1, 1, -1) for weight in (self.scale, self.bias))
        factor = lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon) * scale
        return ((x - mean) * factor + bias).astype(self.dtype)

    def _means(self, x: Features) -> Float[Array, "b f_ 1 1 c"]:
        """Mean of each channel's group. Channels are averaged last, on few numbers: that axis is slow on CPUs."""
        means = x.mean(axis=2, keepdims=True).mean(axis=(2, 3) if self.per_frame else (1, 2, 3), keepdims=True)
        size = x.shape[-1] // self.num_groups
        return repeat(reduce(means, "b f 1 1 (g c) -> b f 1 1 g", "mean", c=size), "b f 1 1 g -> b f 1 1 (g c)", c=size)


class SpatialNorm(nnx.Module):
    """Group normalisation with scale and shift computed from the latents z: norm(x) * y(z) + b(z)."""

    def __init__(self, layers: Layers, features: int, latent_features: int):
        self.norm = layers.norm(features, 1e-6)
        self.scale = layers.linear(latent_features, features)
        self.shift = layers.linear(latent_features, features)

    def __call__(self, x: Features, latents: Condition) -> Features:
        # A pointwise map commutes with nearest-neighbour upsampling and is far cheaper before it.
        upsample = partial(
            repeat,
            pattern="b f h w c -> b f (h y) (w x) c",
            y=x.shape[2] // latents.shape[2],
            x=x.shape[3] // latents.shape[3],
        )
        return self.norm(x) * upsample(self.scale(latents)) + upsample(self.shift(latents))


class Level(nnx.Module):
    """Residual blocks at one resolution, then the convolution that changes the resolution, except in the last level."""

    def __init__(self, blocks: list[ResnetBlock], resample: nnx.Conv | None = None):
        self.blocks = nnx.List(blocks)
        self.resample = nnx.data(resample)

    def __call__(self, x: Features, stream: Stream, *latents: Condition) -> Float[Array, "b f h w c_"]:
        for block in self.blocks:
            x = block(x, stream, *latents)
        return x


class Encoder(nnx.Module):
    """Video -> mean and log variance of the latents, concatenated along the channels."""

    def __init__(
        self,
        layers: Layers,
        features: int,
        widths: tuple[int, ...],
        latent_features: int,
        blocks: int,
        eps: float,
        temporal_levels: int,
    ):
        norm = partial(layers.norm, eps=eps)
        self.conv_in = layers.conv(features, widths[0])
        self.levels = nnx.List(
            Level(
                residual_blocks(layers, norm, widths[max(i - 1, 0)], width, blocks),
                layers.downsample(width, width) if i < len(widths) - 1 else None,
            )
            for i, width in enumerate(widths)
        )
        self.middle = Level(residual_blocks(layers, norm, widths[-1], widths[-1], 2))
        self.norm_out = layers.norm(widths[-1], 1e-6)
        self.conv_out = layers.conv(widths[-1], 2 * latent_features)
        self.temporal_levels = temporal_levels

    def __call__(self, x: Features, stream: Stream) -> NewFeatures:
        x = self.conv_in(x, stream)
        for i, level in enumerate(self.levels):
            x = level(x, stream)
            if level.resample is not None:
                if i < self.temporal_levels:
                    x = group_frames(x, 2, stream.lone).mean(axis=2)
                x = level.resample(x)
        x = self.middle(x, stream)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), stream)


class Decoder(nnx.Module):
    """Latents -> video; each normalisation also takes the latents as input."""

    def __init__(
        self,
        layers: Layers,
        latent_features: int,
        widths: tuple[int, ...],
        new_features: int,
        blocks: int,
        temporal_levels: int,
    ):
        widths = widths[::-1]
        norm = partial(SpatialNorm, layers, latent_features=latent_features)
        self.conv_in = layers.conv(latent_features, widths[0])
        self.middle = Level(residual_blocks(layers, norm, widths[0], widths[0], 2))
        self.levels = nnx.List(
            Level(
                residual_blocks(layers, norm, widths[max(i - 1, 0)], width, blocks + 1),
                layers.upsample(width, width) if i < len(widths) - 1 else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = norm(widths[-1])
        self.conv_out = layers.conv(widths[-1], new_features)
        self.temporal_levels = temporal_levels

    def __call__(self, latents: Latent, stream: Stream) -> NewFeatures:
        x = self.conv_in(latents, stream)
        x = self.middle(x, stream, latents)
        for i, level in enumerate(self.levels):
            x = level(x, stream, latents)
            if level.resample is not None:
                x = level.resample(x)
                if i < self.temporal_levels:  # afterwards, so that equal frames are not convolved twice
                    x, latents = double_frames(x, stream.lone), double_frames(latents, stream.lone)
        x = self.norm_out(x, latents)
        return self.conv_out(jax.nn.silu(x), stream)


def double_frames(x: Features, lone: bool) -> Float[Array, "b f_ h w c"]:
    """Repeats each frame twice, except a lone first frame."""
    return ungroup_frames(repeat(x, "b f h w c -> b f 2 h w c"), lone)


class Autoencoder(nnx.Module):
    """Encoder and decoder, fed in chunks of frames."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        patch_size: tuple[int, int, int],
        ratio: tuple[int, int, int],
        exactly_causal: bool,
        chunks: tuple[int | None, int | None],
    ):
        self.encoder = encoder
        self.decoder = decoder
        self.patch_size = patch_size
        self.ratio = ratio
        self.exactly_causal = exactly_causal
        self.chunks = chunks

    def encode(self, video: Float[Array, "b F H W rgb"]) -> tuple[Latent, Latent]:
        """Mean and log variance (between -30 and 20) of the latents, unscaled, of a video in -1..1.

        rk + 1 frames, with the temporal ratio r, give k + 1 latent frames. The public network also encodes rk frames,
        without a lone first frame, to k latent frames.

        Raises:
          UserError: frames, height or width do not divide into latents.
        """
        frames, height, width = video.shape[1:4]
        lone = self.ratio[0] == 1 or frames % self.ratio[0] == 1
        if not (lone or (frames % self.ratio[0] == 0 and not self._always_lone())):
            raise UserError(f"{frames} frames cannot be encoded: give {self.ratio[0]} k + 1")
        if height % self.ratio[1] or width % self.ratio[2]:
            raise UserError(
                f"{height} x {width} cannot be encoded: give multiples of {' x '.join(map(str, self.ratio[1:]))}"
            )
        t, y, x = self.patch_size
        patches = rearrange(group_frames(video, t, lone), "b n t (h y) (w x) c -> b n h w (t y x c)", y=y, x=x)
        moments = in_chunks(self.encoder, patches, self.chunks[0], lone)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(self, latents: Latent) -> Float[Array, "b F H W rgb"]:
        """The video of unscaled latents, with pixels in about -1..1: k + 1 latent frames give rk + 1 frames.

        The public network decodes an even number n of latent frames to rn frames.
        """
        lone = latents.shape[1] % 2 == 1 or self._always_lone()
        t, y, x = self.patch_size
        patches = in_chunks(self.decoder, latents, self.chunks[1], lone).astype(jnp.float32)
        video = rearrange(patches, "b n h w (t y x c) -> b n t (h y) (w x) c", t=t, y=y, x=x)
        return ungroup_frames(video, lone)

    def _always_lone(self) -> bool:
        return self.exactly_causal or self.patch_size[0] > 1
