"""Reads the attributes of a clip of the world of pairs from its pixels, and its distance from a valid rendering.

As in `rewards.shapes`, the reading is a least-squares fit of the renderer to the pixels, here to each of two colours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dollar_jax.data.pairs import MOTIONS, RELATIONS, RESOLUTION, SIZE, TRAVEL, attributes
from dollar_jax.data.shapes import BACKGROUND
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

_AXES = np.array(list(RELATIONS.values()), np.float32)
_SIGNS = np.array(list(MOTIONS.values()))
_REACH = 0.4  # of the image: largest distance of a shape from the middle, in x and in y
_EXPLAINED = 0.15  # of a mask's energy, see `fitting.best`: noise of 0.1 has more energy than a shape
_CHUNK = 8  # number of clips whose masks fit into the processor's cache


class Reading(NamedTuple):
    """Attributes of b clips; the shape on the left or above comes first. Lengths are in pixels of the video."""

    colour: Int[np.ndarray, "b 2"]  # indices into COLOURS
    shape: Int[np.ndarray, "b 2"]  # indices into SHAPES
    relation: Indices  # index into RELATIONS
    motion: Indices  # index into MOTIONS
    position: Float[np.ndarray, "b 2"]  # middle of the pair, relative to the middle of the image
    distance: Numbers  # of the two shapes, in the middle of the clip
    background: Numbers  # grey, 0..1
    clean_db: Numbers  # PSNR to the nearest valid rendering
    found: Flags  # whether the clip shows two of the shapes at all


def read(video: Frames) -> Reading:
    """Reads the attributes of square clips with pixels in 0..1, of any frame count and resolution.

    The two colours are those that most pixels have, weighted by their chroma. Each half of a frame, the pixels that are
    nearer to one colour's centroid than to the other's, is read as in `rewards.shapes`. The nearest valid rendering has
    sizes, change of the distance and background clipped to the ranges of the world; every position is valid.
    """
    return read_in_chunks(_read, video, _CHUNK)


def _read(video: Float[np.ndarray, "b f h w 3"]) -> Reading:
    frames, pixels = video.shape[1:3]
    unit = pixels / RESOLUTION
    sizes = SIZE[0] * unit, SIZE[1] * unit

    backdrop = np.median(video, axis=(1, 2, 3), keepdims=True)  # with a tint, which is not a colour of a shape
    chroma = video - backdrop
    chroma -= chroma.mean(-1, keepdims=True)
    nearest = (chroma @ HUES.T).argmax(-1)
    strength = (chroma**2).sum(-1)
    votes = np.stack([((nearest == hue) * strength).sum((1, 2, 3)) for hue in range(len(HUES))], 1)
    colour = np.sort(np.argsort(votes, axis=1)[:, -2:], axis=1)

    starts = [
        centroids((nearest == colour[:, k, None, None, None]) * strength, _REACH * pixels).astype(np.float32)
        for k in range(2)
    ]
    contrasts = PALETTE[colour] - backdrop.mean(-1)[:, :, 0]
    contrasts /= (contrasts**2).sum(-1, keepdims=True)
    first = _nearer(*starts, pixels)
    masks = [
        np.einsum("bfhwc,bc->bfhw", video - backdrop, contrasts[:, k]) * side for k, side in enumerate((first, ~first))
    ]
    fits = [best(mask, start, sizes, _EXPLAINED) for mask, start in zip(masks, starts, strict=True)]
    shape, position, velocity, size, found = (np.stack(values, 1) for values in zip(*fits, strict=True))

    apart = position[:, 1] - position[:, 0]
    relation = np.abs(apart @ _AXES.T).argmax(1)
    axis = _AXES[relation]
    order = np.where((apart * axis).sum(1)[:, None] >= 0, [[0, 1]], [[1, 0]])
    rows = np.arange(len(order))[:, None]
    colour, shape, position, velocity, size = (x[rows, order] for x in (colour, shape, position, velocity, size))

    growth = ((velocity[:, 1] - velocity[:, 0]) * axis).sum(1)
    speed = np.array(TRAVEL) * unit / max(frames - 1, 1)
    sign = np.where(np.abs(growth) > speed[0] / 2, np.sign(growth), 0.0)
    valid_velocity = (sign * np.clip(np.abs(growth), *speed))[:, None, None] * np.array([[-0.5], [0.5]]) * axis[:, None]
    valid = [
        render_masks(shape[:, k], np.clip(size[:, k], *sizes), position[:, k], valid_velocity[:, k], frames, pixels)
        for k in range(2)
    ]
    valid = np.stack(valid, 1)
    background = background_of(video, valid, PALETTE[colour])
    rendering = compose(valid, PALETTE[colour], np.clip(background, *BACKGROUND))
    return Reading(
        colour=colour,
        shape=shape,
        relation=relation,
        motion=(sign[:, None] == _SIGNS).argmax(1),
        position=position.mean(1) - pixels / 2,
        distance=np.abs((position[:, 1] - position[:, 0]) * axis).sum(1),
        background=background,
        clean_db=psnr(video, rendering),
        found=found.all(1),
    )


def _nearer(
    one: Float[np.ndarray, "b f 2"], other: Float[np.ndarray, "b f 2"], pixels: int
) -> Bool[np.ndarray, "b f h w"]:
    """Whether each pixel is nearer to one point of its frame than to the other."""
    middles = np.arange(pixels, dtype=np.float32) + 0.5
    x, y = np.moveaxis(2 * (other - one), -1, 0)
    bound = (other**2 - one**2).sum(-1)
    return x[..., None, None] * middles + y[..., None, None] * middles[:, None] < bound[..., None, None]


def agreement(reading: Reading, captions: Sequence[str]) -> dict[str, Flags]:
    """Whether each clip agrees with its caption: 'colour' and 'shape' of both, 'relation', 'motion' and 'all'.

    Colours are right in either order. Each shape belongs to its colour, and so does its side of the relation.

    Raises:
      UserError: a caption is not of the world of pairs.
    """
    told = attributes(captions)
    colours, shapes, relation, motion = told[:, [0, 2]], told[:, [1, 3]], told[:, 4], told[:, 5]
    swapped = (reading.colour == colours[:, ::-1]).all(1)
    colour = (reading.colour == colours).all(1) | swapped
    seen = np.where(swapped[:, None], reading.shape[:, ::-1], reading.shape)
    agrees = {
        "colour": colour,
        "shape": colour & (seen == shapes).all(1),
        "relation": colour & ~swapped & (reading.relation == relation),
        "motion": reading.motion == motion,
    }
    return of_found(agrees, reading.found)
