"""Wan's causal 3D variational autoencoders: 2.1 (4 x 8 x 8, 16 channels) and 2.2 (4 x 16 x 16, 48 channels).

A video of 4k + 1 frames becomes k + 1 latent frames: one for the first frame, one for each four frames after it. No
frame depends on a later one, and norms see one pixel: so a video may be processed in chunks of frames of any size, and
the result is that of the whole video. Each convolution over time keeps the last frames of a chunk for the next chunk.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dollar_jax.errors import UserError
from dollar_jax.models.attention import attention
from dollar_jax.models.causal_blocks import Layers, make_layers, residual_blocks
from dollar_jax.models.convolution import Stream, TimeConv, in_chunks
from dollar_jax.models.network import Network, from_module
from dollar_jax.types import Latent, Video

Features = Float[Array, "b f h w c"]
NewFeatures = Float[Array, "b f_ h_ w_ c_"]
Step = tuple[int, int]  # what a level divides or multiplies frames by, and rows and columns
LAST: Step = (1, 1)  # the level without a change of resolution


def build(
    *,
    base_dim: int = 96,
    decoder_base_dim: int | None = None,
    z_dim: int = 16,
    dim_mult: Sequence[int] = (1, 2, 4, 4),
    num_res_blocks: int = 2,
    temporal_downsample: Sequence[bool] = (False, True, True),
    is_residual: bool = False,
    patch_size: int = 1,
    encode_chunk: int | None = 4,
    decode_chunk: int | None = 1,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """The autoencoder: `apply(params, video, method="encode")` and `apply(params, latents, method="decode")`.

    The defaults are the public 2.1.

    Args:
      base_dim, decoder_base_dim: width of the encoder and of the decoder (None: the same), times `dim_mult` of a level.
      z_dim: channels of the latents.
      dim_mult: one number for each level; between two levels, rows and columns are halved.
      num_res_blocks: residual blocks in each level of the encoder; the decoder has one more.
      temporal_downsample: whether frames are halved too, for each pair of neighbouring levels.
      is_residual: whether a level also has a shortcut, means of its input's channels or copies of them, as in 2.2.
      patch_size: rows and columns of the patches that the first layer takes as channels and the last layer returns.
      encode_chunk, decode_chunk: number of frames encoded at a time and of latent frames decoded at a time; the first
        chunk also takes the remainder. None: all at once. Only memory depends on it.
      dtype: dtype of the computation; norms are computed in float32; parameters and results are float32.
    Raises:
      UserError: the sizes do not fit together.
    """
    levels, frames = len(dim_mult), 2 ** sum(map(bool, temporal_downsample))
    if len(temporal_downsample) != levels - 1:
        raise UserError(f"temporal_downsample has {len(temporal_downsample)} flags: {levels} levels want {levels - 1}")
    if encode_chunk is not None and encode_chunk % frames:
        raise UserError(f"encode_chunk {encode_chunk} must be a multiple of the {frames} frames of a latent frame")
    steps = [(2 if halved else 1, 2) for halved in temporal_downsample]

    def make(rngs: nnx.Rngs) -> Autoencoder:
        layers = make_layers(partial(ChannelNorm, dtype=dtype, rngs=rngs), zeros=True, dtype=dtype, rngs=rngs)
        time_conv = partial(TimeConv, dtype=dtype, rngs=rngs)
        channels = 3 * patch_size**2
        down = [base_dim * factor for factor in (1, *dim_mult)]
        up = [(decoder_base_dim or base_dim) * factor for factor in (*dim_mult, dim_mult[-1])][::-1]
        return Autoencoder(
            Encoder(layers, time_conv, channels, down, z_dim, num_res_blocks, [*steps, LAST], is_residual),
            Decoder(layers, time_conv, z_dim, up, channels, num_res_blocks + 1, [*steps[::-1], LAST], is_residual),
            patch_size=patch_size,
            ratio=(frames, patch_size * 2 ** (levels - 1)),
            chunks=(encode_chunk, decode_chunk),
        )

    return from_module(make)


class ChannelNorm(nnx.Module):
    """sqrt(c) x / |x| * scale, with the norm |x| over the channels of a pixel; x = 0 stays 0."""

    def __init__(self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(features))
        self.dtype = dtype

    def __call__(self, x: Features) -> Features:
        x = x.astype(jnp.float32)
        square = jnp.sum(x**2, axis=-1, keepdims=True)
        factor = lax.rsqrt(jnp.maximum(square, 1e-24)) * x.shape[-1] ** 0.5
        return (x * factor * self.scale[...].reshape(1, 1, 1, 1, -1)).astype(self.dtype)


class FrameAttention(nnx.Module):
    """x + attention of the pixels of each frame to each other, with one head."""

    def __init__(self, layers: Layers, features: int):
        self.norm = layers.norm(features)
        self.qkv = layers.linear(features, 3 * features)
        self.project = layers.linear(features, features)

    def __call__(self, x: Features) -> Features:
        frames, height = x.shape[1:3]
        pixels = rearrange(self.qkv(self.norm(x)), "b f h w c -> (b f) (h w) 1 c")
        mixed = attention(*jnp.split(pixels, 3, axis=-1))
        return x + self.project(rearrange(mixed, "(b f) (h w) 1 c -> b f h w c", f=frames, h=height))


class Middle(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, layers: Layers, features: int):
        self.blocks = nnx.List(residual_blocks(layers, layers.norm, features, features, 2))
        self.attention = FrameAttention(layers, features)

    def __call__(self, x: Features, stream: Stream) -> Features:
        first, second = self.blocks
        return second(self.attention(first(x, stream)), stream)


class DownLevel(nnx.Module):
    """Residual blocks, then halving of rows and columns, then of frames. The first frame of a video stands alone."""

    def __init__(
        self,
        layers: Layers,
        time_conv: Callable[..., TimeConv],
        features: int,
        new_features: int,
        blocks: int,
        step: Step,
        is_residual: bool,
    ):
        if is_residual and features * math.prod(step) * step[1] % new_features:
            raise UserError(f"{features} channels at steps of {step} make no groups for {new_features}: see dim_mult")
        self.blocks = nnx.List(residual_blocks(layers, layers.norm, features, new_features, blocks))
        self.resample = nnx.data(None if step == LAST else layers.downsample(new_features, new_features))
        self.time_conv = nnx.data(time_conv(new_features, new_features, stride=2) if step[0] == 2 else None)
        self.step = step
        self.is_residual = is_residual

    def __call__(self, x: Features, stream: Stream) -> NewFeatures:
        y = x
        for block in self.blocks:
            y = block(y, stream)
        if self.resample is not None:
            y = self.resample(y)
        if self.time_conv is not None:
            past = stream.remember(y, 1)
            if past is None:
                y = jnp.concatenate([y[:, :1], self.time_conv(y)], axis=1)
            else:
                y = self.time_conv(jnp.concatenate([past, y], axis=1))
        return y + group_means(x, y.shape[-1], self.step, stream.lone) if self.is_residual else y


class UpLevel(nnx.Module):
    """Residual blocks, then doubling of frames, then of rows and columns. The first frame of a video is not doubled,
    and no later frame's window in time reaches back to it.
    """

    def __init__(
        self,
        layers: Layers,
        time_conv: Callable[..., TimeConv],
        features: int,
        new_features: int,
        resampled: int,
        blocks: int,
        step: Step,
        is_residual: bool,
    ):
        if is_residual and new_features * math.prod(step) * step[1] % features:
            raise UserError(f"{features} channels at steps of {step} fill no {new_features}: see dim_mult")
        self.blocks = nnx.List(residual_blocks(layers, layers.norm, features, new_features, blocks))
        self.time_conv = nnx.data(time_conv(new_features, 2 * new_features, stride=1) if step[0] == 2 else None)
        self.resample = nnx.data(None if step == LAST else layers.upsample(new_features, resampled))
        self.step = step
        self.is_residual = is_residual

    def __call__(self, x: Features, stream: Stream) -> NewFeatures:
        y = x
        for block in self.blocks:
            y = block(y, stream)
        if self.time_conv is not None:
            first, rest = jnp.split(y, [1 if stream.lone else 0], axis=1)
            past = stream.remember(rest, 2, zeros=True)
            doubled = self.time_conv(jnp.concatenate([past, rest], axis=1))
            y = jnp.concatenate([first, rearrange(doubled, "b f h w (n c) -> b (f n) h w c", n=2)], axis=1)
        if self.resample is not None:
            y = self.resample(y)
        return y + copies(x, y.shape[-1], self.step, stream.lone) if self.is_residual else y


def group_means(x: Features, features: int, step: Step, lone: bool) -> NewFeatures:
    """Patches of x as channels, of which neighbours are averaged until `features` are left.

    A lone first frame shares its patch with zeros.
    """
    time, space = step
    if lone:
        x = jnp.pad(x, ((0, 0), (time - 1, 0), (0, 0), (0, 0), (0, 0)))
    patches = rearrange(x, "b (f t) (h y) (w x) c -> b f h w (c t y x)", t=time, y=space, x=space)
    return reduce(patches, "b f h w (c n) -> b f h w c", "mean", c=features)


def copies(x: Features, features: int, step: Step, lone: bool) -> NewFeatures:
    """The counterpart of `group_means`: channels are repeated, until they fill patches of `features` channels."""
    time, space = step
    count = features * time * space**2 // x.shape[-1]
    patches = repeat(x, "b f h w c -> b f h w (c n)", n=count)
    x = rearrange(patches, "b f h w (c t y x) -> b (f t) (h y) (w x) c", t=time, y=space, x=space)
    return x[:, time - 1 :] if lone else x


class Encoder(nnx.Module):
    """Video -> mean and log variance of the latents, concatenated along the channels."""

    def __init__(
        self,
        layers: Layers,
        time_conv: Callable[..., TimeConv],
        features: int,
        widths: Sequence[int],
        latent_features: int,
        blocks: int,
        steps: Sequence[Step],
        is_residual: bool,
    ):
        self.conv_in = layers.conv(features, widths[0])
        self.levels = nnx.List(
            DownLevel(layers, time_conv, *pair, blocks, step, is_residual)
            for pair, step in zip(pairwise(widths), steps, strict=True)
        )
        self.middle = Middle(layers, widths[-1])
        self.norm_out = layers.norm(widths[-1])
        self.conv_out = layers.conv(widths[-1], 2 * latent_features)
        self.quant = layers.linear(2 * latent_features, 2 * latent_features)

    def __call__(self, x: Features, stream: Stream) -> NewFeatures:
        x = self.conv_in(x, stream)
        for level in self.levels:
            x = level(x, stream)
        x = self.middle(x, stream)
        return self.quant(self.conv_out(jax.nn.silu(self.norm_out(x)), stream))


class Decoder(nnx.Module):
    """Latents -> video."""

    def __init__(
        self,
        layers: Layers,
        time_conv: Callable[..., TimeConv],
        latent_features: int,
        widths: Sequence[int],
        new_features: int,
        blocks: int,
        steps: Sequence[Step],
        is_residual: bool,
    ):
        self.quant = layers.linear(latent_features, latent_features)
        self.conv_in = layers.conv(latent_features, widths[0])
        self.middle = Middle(layers, widths[0])
        levels, features = [], widths[0]
        for width, step in zip(widths[1:], steps, strict=True):
            resampled = width if is_residual else width // 2  # without a shortcut, doubling also halves the width
            shortcut = is_residual and step != LAST
            levels.append(UpLevel(layers, time_conv, features, width, resampled, blocks, step, shortcut))
            features = resampled
        self.levels = nnx.List(levels)
        self.norm_out = layers.norm(widths[-1])
        self.conv_out = layers.conv(widths[-1], new_features)

    def __call__(self, latents: Latent, stream: Stream) -> NewFeatures:
        x = self.conv_in(self.quant(latents), stream)
        x = self.middle(x, stream)
        for level in self.levels:
            x = level(x, stream)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), stream)


class Autoencoder(nnx.Module):
    """Encoder and decoder, fed in chunks of frames."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        patch_size: int,
        ratio: tuple[int, int],
        chunks: tuple[int | None, int | None],
    ):
        self.encoder = encoder
        self.decoder = decoder
        self.patch_size = patch_size
        self.ratio = ratio
        self.chunks = chunks

    def encode(self, video: Video) -> tuple[Latent, Latent]:
        """Mean and log variance (between -30 and 20) of the latents, unscaled, of a video in -1..1.

        Raises:
          UserError: frames, height or width do not divide into latents.
        """
        (frames, height, width), (time, space) = video.shape[1:4], self.ratio
        if (frames - 1) % time:
            raise UserError(f"{frames} frames cannot be encoded: give {time} k + 1")
        if height % space or width % space:
            raise UserError(f"{height} x {width} cannot be encoded: give multiples of {space} x {space}")
        patches = rearrange(video, "b f (h y) (w x) c -> b f h w (c x y)", y=self.patch_size, x=self.patch_size)
        moments = in_chunks(self.encoder, patches, self.chunks[0], lone=True)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(self, latents: Latent) -> Video:
        """The video, about -1..1, of unscaled latents: k + 1 latent frames give 4k + 1 frames.

        It is not clipped, so that pixels out of range have a gradient in training; the pipeline clips.
        """
        patches = in_chunks(self.decoder, latents, self.chunks[1], lone=True).astype(jnp.float32)
        return rearrange(patches, "b f h w (c x y) -> b f (h y) (w x) c", y=self.patch_size, x=self.patch_size)
