"""Encodings of time and of the positions of tokens in a video grid [f h w].

The tables of positions are NumPy arrays, computed for the traced sizes: constants of the compiled step, not parameters.
All kinds use the frequencies 10000^(-i / (d / 2)), i = 0 .. d/2 - 1, for d features of an axis.
"""

import jax.numpy as jnp
import numpy as np
from einops import repeat
from jaxtyping import Array, Float, Real

from dollar_jax.errors import UserError
from dollar_jax.types import Times

Grid = tuple[int, int, int]
Turn = Float[np.ndarray, "1 n 1 half"]  # cosines or sines of the angles of rotary embeddings


def tokens(sizes: tuple[int, int, int], patch: tuple[int, int, int]) -> Grid:
    """Numbers of tokens along time, height and width for latents of these sizes (f, h, w)."""
    if any(size % step for size, step in zip(sizes, patch, strict=True)):
        raise UserError(
            f"latents of {sizes} frames, rows and columns do not divide into patches of {patch}: change the size"
        )
    f, h, w = (size // step for size, step in zip(sizes, patch, strict=True))
    return f, h, w


def time_features(times: Times, width: int, flip_sin_to_cos: bool, freq_shift: int) -> Float[Array, "b width"]:
    """Sines, then cosines (or flipped) of t 10000^(-i / (width / 2 - freq_shift)), i = 0 .. width / 2 - 1."""
    frequencies = 10000.0 ** -(np.arange(width // 2) / (width // 2 - freq_shift))
    angles = times[:, None].astype(jnp.float32) * frequencies[None, :].astype(np.float32)
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)


def _axis_angles(positions: Real[np.ndarray, " n"], width: int) -> Float[np.ndarray, "n half"]:
    return np.outer(positions, 10000.0 ** -(np.arange(width // 2) / (width // 2)))


def _cells(t: np.ndarray, y: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    """The features of the three axes, repeated for every cell of the grid: three arrays [f*h*w, .]."""
    f, h, w = len(t), len(y), len(x)
    return [
        repeat(t, "f d -> (f h w) d", h=h, w=w),
        repeat(y, "h d -> (f h w) d", f=f, w=w),
        repeat(x, "w d -> (f h w) d", f=f, h=h),
    ]


def sincos(grid: Grid, width: int, spatial_scale: float, temporal_scale: float) -> Float[np.ndarray, "n width"]:
    """Sinusoidal vectors added to the tokens (CogVideoX-2B): 1/4 of the features encode t, 3/8 x, 3/8 y.

    Args:
      grid: tokens along time, height and width.
      width: features of a token, divisible by 16.
      spatial_scale: positions along height and width are divided by it.
      temporal_scale: positions along time are divided by it.
    """

    def axis(size: int, scale: float, width: int) -> np.ndarray:
        angles = _axis_angles(np.arange(size) / scale, width)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    f, h, w = grid
    spatial = width // 8 * 3
    t, y, x = _cells(
        axis(f, temporal_scale, width // 4), axis(h, spatial_scale, spatial), axis(w, spatial_scale, spatial)
    )
    return np.concatenate([t, x, y], axis=-1).astype(np.float32)


def angles(axes: tuple[np.ndarray, np.ndarray, np.ndarray], widths: Grid) -> Float[np.ndarray, "n half"]:
    """Rotary embedding: angles by which the feature pairs of queries and keys turn, in float64.

    Args:
      axes: positions of the grid's frames, rows and columns.
      widths: features of a head that encode each of them, even numbers.
    """
    t, y, x = (_axis_angles(positions, width) for positions, width in zip(axes, widths, strict=True))
    return np.concatenate(_cells(t, y, x), axis=-1)


def turns(angles: Float[np.ndarray, "n half"]) -> tuple[Turn, Turn]:
    """Cosines and sines of the angles, for `turn`."""
    angles = angles[None, :, None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def turn(x: Float[Array, "b n h d"], cos: Turn, sin: Turn) -> Float[Array, "b n h d"]:
    """Rotates each pair of neighbouring features by its angle, in float32."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape).astype(x.dtype)


def rotary(grid: Grid, width: int, base: tuple[int, int], fit: bool) -> Float[np.ndarray, "n half"]:
    """Rotary embedding of CogVideoX-5B: its angles, see `angles`; 1/4 of the features for t, 3/8 for y, 3/8 for x.

    Args:
      grid: tokens along time, height and width.
      width: features of a head, divisible by 16.
      base: tokens along height and width in training.
      fit: True (1.0) fits the grid into the middle of the base and keeps its aspect ratio, so that a larger video has
        finer positions; False (1.5) counts 0, 1, 2, ... from the top left corner.
    Raises:
      UserError: the grid is larger than the base, which only `fit` allows.
    """
    f, h, w = grid
    if fit:
        y, x = _fitted(h, w, base)
    elif h > base[0] or w > base[1]:
        raise UserError(
            f"a grid of {h} x {w} tokens is larger than the network's {base[0]} x {base[1]}: sample smaller"
        )
    else:
        y, x = np.arange(h), np.arange(w)
    spatial = width // 8 * 3
    return angles((np.arange(f), y, x), (width // 4, spatial, spatial))


def _fitted(h: int, w: int, base: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of h rows and w columns, scaled to fit into `base` and centred in it."""
    taller = h / w > base[0] / base[1]
    size = (base[0], round(base[0] / h * w)) if taller else (round(base[1] / w * h), base[1])
    coordinates = []
    for count, length, room in zip((h, w), size, base, strict=True):
        start = round((room - length) / 2)
        # The public weights were trained with the last coordinate at (start + length) (count - 1) / count.
        coordinates.append(np.linspace(start, (start + length) * (count - 1) / count, count))
    return coordinates[0], coordinates[1]
