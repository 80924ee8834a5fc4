"""Causal convolutions over time, and the stream that carries past frames from one chunk of a video to the next."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

CACHED = 2**19  # size of stacked frames that fits into a CPU's cache; larger frames are convolved one by one


class Stream:
    """One pass of a causal network over one chunk of a video.

    Each convolution calls `remember`, in the order in which the network runs. With `future` of this chunk as `past` of
    the next chunk, the two passes give the same result as one pass over both chunks.

    Attributes:
      lone: whether the chunk's first frame is a group of its own, as in a video of 4k + 1 frames.
      future: last frames of this chunk, for each convolution.
    """

    def __init__(self, lone: bool, past: Sequence[Array] | None = None):
        self.lone = lone
        self.future = []
        self._past = None if past is None else iter(past)

    def remember(
        self, x: Float[Array, "b f h w c"], frames: int, zeros: bool = False
    ) -> Float[Array, "b {frames} h w c"] | None:
        """The `frames` frames before x. Keeps the last ones for the next chunk.

        At the start of a video: None, which stands for copies of the first frame, or zeros.
        """
        past = None if self._past is None else next(self._past)
        if past is None and zeros:
            past = jnp.zeros_like(x, shape=(len(x), frames, *x.shape[2:]))
        last = x[:, -frames:]
        seen = repeat_first(last, frames) if past is None else jnp.concatenate([past, last], axis=1)
        self.future.append(seen[:, -frames:])
        return past


def in_chunks(
    network: Callable[[Float[Array, "b f h w c"], Stream], Float[Array, "b f_ h_ w_ c_"]],
    x: Float[Array, "b F h w c"],
    size: int | None,
    lone: bool,
) -> Float[Array, "b F_ h_ w_ c_"]:
    """network(x), `size` frames at a time; the first chunk also takes the remainder, a scan runs over the others."""
    count = max(x.shape[1] // size, 1) if size else 1
    first = x.shape[1] - (count - 1) * (size or 0)
    stream = Stream(lone)
    start = network(x[:, :first], stream)
    if count == 1:
        return start

    def chunk(past, x):
        stream = Stream(False, past)
        y = network(x, stream)
        return stream.future, y

    chunks = rearrange(x[:, first:], "b (n f) h w c -> n b f h w c", f=size)
    rest = lax.scan(chunk, stream.future, chunks)[1]
    return jnp.concatenate([start, rearrange(rest, "n b f h w c -> b (n f) h w c")], axis=1)


def repeat_first(x: Float[Array, "b f h w c"], times: int) -> Float[Array, "b f+{times} h w c"]:
    """x with `times` copies of its first frame in front."""
    return jnp.concatenate([x[:, :1]] * times + [x], axis=1)


def group_frames(x: Float[Array, "b f h w c"], size: int, lone: bool) -> Float[Array, "b n {size} h w c"]:
    """Groups of `size` frames; a lone first frame is repeated to fill a group of its own."""
    return rearrange(repeat_first(x, size - 1) if lone else x, "b (n s) h w c -> b n s h w c", s=size)


def ungroup_frames(x: Float[Array, "b n s h w c"], lone: bool) -> Float[Array, "b f h w c"]:
    """The inverse of `group_frames`."""
    return rearrange(x, "b n s h w c -> b (n s) h w c")[:, x.shape[2] - 1 if lone else 0 :]


def convolve(
    x: Float[Array, "b F h w i"], kernel: Float[Array, "t 3 3 i o"], stacked: bool
) -> Float[Array, "b {x.shape[1]-kernel.shape[0]+1} h w o"]:
    """3D convolution without padding in time, and with zero padding to the same size in space.

    Args:
      stacked: compute it as a 2D convolution of time-shifted frames stacked along the channels. The sums are the same.
        On a CPU this is 2 to 9 times as fast as XLA's 3D convolution; accelerators have fast 3D convolutions.
    """
    window, frames = kernel.shape[0], x.shape[1] - kernel.shape[0] + 1
    if not stacked:
        padding = ((0, 0), (1, 1), (1, 1))
        return lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
    flat = rearrange(kernel, "t y x i o -> y x (t i) o")
    convolve_2d = partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    if frames > 1 and math.prod(x.shape[2:]) * window > CACHED:

        def frame(start):
            seen = lax.dynamic_slice_in_dim(x, start, window, axis=1)
            return convolve_2d(rearrange(seen, "b t h w i -> b h w (t i)"), flat)

        return rearrange(lax.map(frame, jnp.arange(frames)), "f b h w o -> b f h w o")
    x = jnp.concatenate([x[:, i : i + frames] for i in range(window)], axis=-1)
    return rearrange(convolve_2d(rearrange(x, "b f h w i -> (b f) h w i"), flat), "(b f) h w o -> b f h w o", f=frames)


def convolve_causally(
    x: Float[Array, "b f h w i"],
    past: Float[Array, "b {kernel.shape[0]-1} h w i"] | None,
    kernel: Float[Array, "t 3 3 i o"],
    stacked: bool,
) -> Float[Array, "b f h w o"]:
    """`convolve` with past frames in front of x, or copies of the first frame at the start of a video.

    With `stacked`, the n copies of the first frame in a window are replaced by one frame and the sum of the window's
    first n taps: an image takes a third of the multiplications.
    """
    before = kernel.shape[0] - 1
    if past is not None or not stacked:
        x = repeat_first(x, before) if past is None else jnp.concatenate([past, x], axis=1)
        return convolve(x, kernel, stacked)
    taps = jnp.split(kernel, kernel.shape[0])
    parts = []
    for seen in range(1, min(before, x.shape[1]) + 1):
        start = jnp.concatenate([sum(taps[: before - seen + 2]), *taps[before - seen + 2 :]])
        parts.append(convolve(x[:, :seen], start, stacked))
    if x.shape[1] > before:
        parts.append(convolve(x, kernel, stacked))
    # The barrier keeps XLA from concatenating the parts again for each operation that reads the result.
    return lax.optimization_barrier(jnp.concatenate(parts, axis=1))


class CausalConv(nnx.Module):
    """Convolution with a 3 x 3 x 3 window that ends at the current frame.

    Before the first frame are copies of it, or zeros if `zeros`. `stacked=None`: stacked on CPUs only.
    """

    def __init__(
        self,
        features: int,
        new_features: int,
        *,
        dtype: DTypeLike,
        stacked: bool | None = None,
        zeros: bool = False,
        rngs: nnx.Rngs,
    ):
        shape = (3, 3, 3, features, new_features)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(new_features))
        self.dtype = dtype
        self.stacked = stacked
        self.zeros = zeros

    def __call__(self, x: Float[Array, "b f h w i"], stream: Stream) -> Float[Array, "b f h w o"]:
        stacked = jax.default_backend() == "cpu" if self.stacked is None else self.stacked
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        x = x.astype(self.dtype)
        past = stream.remember(x, kernel.shape[0] - 1, self.zeros)
        return convolve_causally(x, past, kernel, stacked) + bias.reshape(1, 1, 1, 1, -1)


class TimeConv(nnx.Module):
    """Convolution with a window of 3 frames at each pixel, without padding: one product with a matrix."""

    def __init__(self, features: int, new_features: int, *, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (3, features, new_features)))
        self.bias = nnx.Param(jnp.zeros(new_features))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b F h w i"]) -> Float[Array, "b f h w o"]:
        frames = (x.shape[1] - 3 + self.stride) // self.stride  # 0 for a lone frame
        window = [x[:, i :: self.stride][:, :frames] for i in range(3)]
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        product = jnp.concatenate(window, axis=-1).astype(self.dtype) @ rearrange(kernel, "t i o -> (t i) o")
        return product + bias.reshape(1, 1, 1, 1, -1)


class UpsamplingConv(nnx.Conv):
    """2 x 2 nearest-neighbour upsampling and a 3 x 3 convolution, with less than half of the multiplications.

    Along an axis the window covers only two input pixels: outputs 2i and 2i + 1 are k0 x[i-1] + (k1 + k2) x[i] and
    (k0 + k1) x[i] + k2 x[i+1]. So four convolutions with 2 x 2 windows compute the four parities of output pixels.
    """

    def __init__(self, features: int, new_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(features, new_features, (3, 3), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b f h w i"]) -> Float[Array, "b f 2*h 2*w o"]:
        frames = x.shape[1]
        x = rearrange(x, "b f h w i -> (b f) h w i").astype(self.dtype)
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        sides = ((1, 0), (0, 1))
        parities = [
            lax.conv_general_dilated(
                x, part, (1, 1), (sides[row], sides[column]), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            for row, rows in enumerate(_seen_twice(kernel, axis=0))
            for column, part in enumerate(_seen_twice(rows, axis=1))
        ]
        y = rearrange(jnp.stack(parities), "(y x) (b f) h w o -> b f (h y) (w x) o", y=2, f=frames)
        return y + bias.reshape(1, 1, 1, 1, -1)


def _seen_twice(kernel: Float[Array, "y x i o"], axis: int) -> tuple[Array, Array]:
    """Kernels of the even and of the odd outputs along an axis."""
    first, middle, last = jnp.split(kernel, 3, axis=axis)
    return jnp.concatenate([first, middle + last], axis), jnp.concatenate([first + middle, last], axis)
