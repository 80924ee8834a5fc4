"""Reads the attributes of a shapes-world clip from its pixels, and its distance from the nearest valid rendering.

The reading is a least-squares fit of the renderer to the pixels. Noise, blur and decoder artefacts lower the quality
(`clean_db`) long before they change the attributes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from dollar_jax.data.shapes import BACKGROUND, MOTIONS, RESOLUTION, SIZE, TRAVEL, attributes, tone
from dollar_jax.rewards.fitting import (
    HUES,
    PALETTE,
    Flags,
    Indices,
    Numbers,
    background_of,
    best,
    centroids,
    compose,
    of_found,
    psnr,
    read_in_chunks,
    render_masks,
)

Frames = Float[Array | np.ndarray, "b f h w 3"]  # pixel videos, 0..1

_DIRECTIONS = np.array(list(MOTIONS.values()), np.float32)
_STILL = list(MOTIONS).index("standing still")
_EXPLAINED = 0.3  # of the mask's energy, see `fitting.best`
_CHUNK = 32  # number of clips whose masks fit into the processor's cache


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
    return read_in_chunks(_read, video, _CHUNK)


def _read(video: Float[np.ndarray, "b f h w 3"]) -> Reading:
    frames, pixels = video.shape[1:3]
    unit = pixels / RESOLUTION

    chroma = video - video.mean(-1, keepdims=True)
    # Each pixel is weighted by the length of its chroma: a faint tint of the background must not outvote the shape.
    votes = np.einsum("bfhwc,bfhw->bc", chroma, np.linalg.norm(chroma, axis=-1)) @ HUES.T
    colour = votes.argmax(1)
    grey = np.median(video.mean(-1), axis=(1, 2, 3))
    # For a given background, the squared error in RGB equals the squared error of a mask along this contrast, up to a
    # constant.
    contrast = PALETTE[colour] - grey[:, None]
    contrast /= (contrast**2).sum(1, keepdims=True)
    mask = np.einsum("bfhwc,bc->bfhw", video - grey[:, None, None, None, None], contrast)
    hue = np.einsum("bfhwc,bc->bfhw", chroma, HUES[colour])
    sizes = SIZE[0] * unit, SIZE[1] * unit
    shape, position, velocity, size, found = best(mask, centroids(hue * np.abs(hue), pixels / 4), sizes, _EXPLAINED)

    speed = np.array(TRAVEL) * unit / max(frames - 1, 1)
    along = velocity @ _DIRECTIONS.T
    motion = np.where(along.max(1) > speed[0] / 2, along.argmax(1), _STILL)
    valid_velocity = np.clip(along[np.arange(len(motion)), motion], *speed)[:, None] * _DIRECTIONS[motion]
    valid_mask = render_masks(shape, np.clip(size, *sizes), position, valid_velocity, frames, pixels)[:, None]
    background = background_of(video, valid_mask, PALETTE[colour][:, None])
    valid = compose(valid_mask, PALETTE[colour][:, None], np.clip(background, *BACKGROUND))
    return Reading(
        colour=colour,
        shape=shape,
        motion=motion,
        position=position - pixels / 2,
        velocity=velocity,
        size=size,
        background=background,
        clean_db=psnr(video, valid),
        found=found,
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
    return of_found(agrees, reading.found)
