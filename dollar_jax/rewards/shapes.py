"""Reads the attributes of a shapes-world clip from its pixels, and its distance from the nearest valid rendering.

The reading is a least-squares fit of the renderer to the pixels. Noise, blur and decoder artefacts lower the quality
(`clean_db`) long before they change the attributes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dollar_jax.data.shapes import (
    BACKGROUND,
    COLOURS,
    MOTIONS,
    RESOLUTION,
    SHAPES,
    SIZE,
    TRAVEL,
    attributes,
    coverage,
    path,
    tone,
)

Frames = Float[Array | np.ndarray, "b f h w 3"]  # pixel videos, 0..1
Numbers = Float[np.ndarray, "b"]
Indices = Int[np.ndarray, "b"]
Flags = Bool[np.ndarray, "b"]

_PALETTE = np.array(list(COLOURS.values()), np.float32)
_HUES = _PALETTE - _PALETTE.mean(1, keepdims=True)
_HUES /= np.linalg.norm(_HUES, axis=1, keepdims=True)
_DIRECTIONS = np.array(list(MOTIONS.values()), np.float32)
_STILL = list(MOTIONS).index("standing still")
_STEPS = 5  # steps of Gauss-Newton, which starts within a pixel or two of the solution
_STEP = 0.5  # pixels, step of the finite differences
_CHUNK = 32  # number of clips whose masks fit into the processor's cache
_EXPLAINED = 0.3  # share of the coloured energy that the best rendering must explain, else the clip shows no shape


class Reading(NamedTuple):
    """Attributes of b clips. Lengths are in pixels of the video; (x, y) has y downwards."""

    colour: Indices  # index into COLOURS
    shape: Indices  # index into SHAPES
    motion: Indices  # index into MOTIONS
    position: Float[np.ndarray, "b 2"]  # middle of the path, relative to the middle of the image
    velocity: Float[np.ndarray, "b 2"]  # pixels per frame
    size: Numbers
    background: Numbers  # grey, 0..1
    clean_db: Numbers  # PSNR to the nearest valid rendering
    found: Flags  # whether the clip shows one of the shapes at all


def read(video: Frames) -> Reading:
    """Reads the attributes of square clips with pixels in 0..1, of any frame count and resolution.

    The colour is the palette entry nearest in chroma, and the fit of the path starts from the centroid of this chroma.
    Each shape is fitted by least squares over position, velocity, size and background; the shape with the smallest
    residual is taken. The nearest valid rendering has the fitted values clipped to the ranges of the shapes world. The
    clipping is exact to second order, because the values hardly interact. Every position is valid.
    """
    video = np.asarray(video, np.float32)
    parts = [_read(video[start : start + _CHUNK]) for start in range(0, len(video), _CHUNK)]
    return Reading(*map(np.concatenate, zip(*parts, strict=True)))


def _read(video: Float[np.ndarray, "b f h w 3"]) -> Reading:
    frames, pixels = video.shape[1:3]
    unit = pixels / RESOLUTION

    chroma = video - video.mean(-1, keepdims=True)
    # Each pixel is weighted by the length of its chroma: a faint tint of the background must not outvote the shape.
    votes = np.einsum("bfhwc,bfhw->bc", chroma, np.linalg.norm(chroma, axis=-1)) @ _HUES.T
    colour = votes.argmax(1)
    grey = np.median(video.mean(-1), axis=(1, 2, 3))
    # For a given background, the squared error in RGB equals the squared error of a mask along this contrast, up to a
    # constant.
    contrast = _PALETTE[colour] - grey[:, None]
    contrast /= (contrast**2).sum(1, keepdims=True)
    mask = np.einsum("bfhwc,bc->bfhw", video - grey[:, None, None, None, None], contrast)

    hue = np.einsum("bfhwc,bc->bfhw", chroma, _HUES[colour])
    centroids = _centroids(hue * np.abs(hue))
    fits = [_fit(shape, mask, centroids, unit) for shape in SHAPES]
    shape = np.argmin([residual for *_, residual in fits], axis=0)
    chosen = shape, np.arange(len(shape))
    position, velocity, size, residual = (np.stack(values)[chosen] for values in zip(*fits, strict=True))

    speed = np.array(TRAVEL) * unit / max(frames - 1, 1)
    along = velocity @ _DIRECTIONS.T
    motion = np.where(along.max(1) > speed[0] / 2, along.argmax(1), _STILL)
    valid_velocity = np.clip(along[np.arange(len(motion)), motion], *speed)[:, None] * _DIRECTIONS[motion]
    valid_mask = _render(shape, np.clip(size, SIZE[0] * unit, SIZE[1] * unit), position, valid_velocity, frames, pixels)
    background = _background(video, valid_mask, _PALETTE[colour])
    valid = _compose(valid_mask, _PALETTE[colour], np.clip(background, *BACKGROUND))
    return Reading(
        colour=colour,
        shape=shape,
        motion=motion,
        position=position - pixels / 2,
        velocity=velocity,
        size=size,
        background=background,
        clean_db=-10 * np.log10(((video - valid) ** 2).mean((1, 2, 3, 4))),
        found=residual < (1 - _EXPLAINED) * (mask**2).sum((1, 2, 3)),
    )


def alignment(frames: Frames, captions: Sequence[str]) -> dict[str, Flags]:
    """`agreement` of what `read` finds in the clips.

    Raises:
      UserError: a caption is not of the shapes world.
    """
    return agreement(read(frames), captions)


def agreement(reading: Reading, captions: Sequence[str]) -> dict[str, Flags]:
    """Whether each clip agrees with its caption, by attribute: 'colour', 'shape', 'motion', 'background' and 'all'.

    'background' counts as right for a short caption, which does not name the background.

    Raises:
      UserError: a caption is not of the shapes world.
    """
    colour, shape, motion, background = attributes(captions).T
    agrees = {
        "colour": reading.colour == colour,
        "shape": reading.shape == shape,
        "motion": reading.motion == motion,
        "background": (tone(reading.background) == background) | (background < 0),
    }
    agrees = {name: right & reading.found for name, right in agrees.items()}
    return agrees | {"all": np.logical_and.reduce(list(agrees.values()))}


def _centroids(weights: Float[np.ndarray, "b f h w"]) -> Float[np.ndarray, "b f 2"]:
    """(x, y) of the centre of each frame's weights, clipped to the middle half of the image."""
    pixels = weights.shape[-1]
    middles = np.arange(pixels, dtype=np.float32) + 0.5 - pixels / 2
    moments = np.stack([weights.sum(2) @ middles, weights.sum(3) @ middles], -1)
    return pixels / 2 + np.clip(moments / np.maximum(weights.sum((2, 3)), 1)[..., None], -pixels / 4, pixels / 4)


def _fit(shape: str, mask: Float[np.ndarray, "b f h w"], centroids: Float[np.ndarray, "b f 2"], unit: float):
    """Fits `shape` to `mask` by Gauss-Newton. Returns position, velocity, size and the squared residual [b]."""
    frames, pixels = mask.shape[1:3]
    times = np.arange(frames) - (frames - 1) / 2
    # [f 3 5]: maps the clip's (x, y, velocity in x, velocity in y, size) to each frame's (x, y, size).
    basis = np.zeros((frames, 3, 5))
    basis[:, [0, 1, 2], [0, 1, 4]] = 1
    basis[:, 0, 2] = basis[:, 1, 3] = times
    line = np.linalg.pinv(basis[:, :2, :4].reshape(-1, 4))
    start = centroids.reshape(len(mask), -1) @ line.T
    values = np.concatenate([start, np.full((len(mask), 1), np.mean(SIZE) * unit)], 1)
    sizes = np.array([0.8 * SIZE[0], 1.2 * SIZE[1]]) * unit  # with a free size, any blob would fit

    def masks(values, shift=(0, 0, 0)):
        x_y_size = np.einsum("fij,bj->bfi", basis, values) + shift
        return coverage(shape, x_y_size[..., 2], x_y_size[..., :2], pixels)

    for _ in range(_STEPS):
        error = mask - masks(values)
        slopes = np.stack([masks(values, step) - masks(values, -step) for step in np.eye(3) * _STEP], 2) / (2 * _STEP)
        slopes = slopes.reshape(*slopes.shape[:3], -1)
        hessian = np.einsum("fij,bfik,fkl->bjl", basis, slopes @ slopes.swapaxes(2, 3), basis, optimize=True)
        gradient = np.einsum("fij,bfi->bj", basis, (slopes @ error.reshape(*error.shape[:2], -1, 1))[..., 0])
        values = values + np.linalg.solve(hessian + 1e-3 * np.eye(5), gradient[..., None])[..., 0]
        values[:, 4] = np.clip(values[:, 4], *sizes)
    return values[:, :2], values[:, 2:4], values[:, 4], ((mask - masks(values)) ** 2).sum((1, 2, 3))


def _render(shape, size, position, velocity, frames: int, pixels: int) -> Float[np.ndarray, "b f h w"]:
    """Masks of clips with different shapes."""
    masks = np.empty((len(shape), frames, pixels, pixels), np.float32)
    for kind, name in enumerate(SHAPES):
        of = shape == kind
        sizes = np.repeat(size[of, None], frames, 1)
        masks[of] = coverage(name, sizes, path(position[of], velocity[of], frames), pixels)
    return masks


def _background(video, mask, colour) -> Numbers:
    """Least-squares grey level of the background: video = grey (1 - mask) + colour mask."""
    uncovered = 1 - mask
    rest = video.mean(-1) - mask * colour.mean(-1)[:, None, None, None]
    return (uncovered * rest).sum((1, 2, 3)) / (uncovered**2).sum((1, 2, 3))


def _compose(mask, colour, background) -> Float[np.ndarray, "b f h w 3"]:
    """Clips: each mask filled with its colour, on its grey background."""
    background = background[:, None, None, None, None].astype(np.float32)
    return background + mask[..., None] * (colour[:, None, None, None] - background)
