"""Small rewards for the shapes world. Rewards with `prepare` and `score` are written in JAX and have a gradient."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from dollar_jax.data.shapes import COLOURS, MOTIONS, attributes
from dollar_jax.errors import UserError
from dollar_jax.rewards.shapes import alignment, read
from dollar_jax.types import PerExample

Frames = Float[Array, "b f h w 3"]  # 0..1
NAMES = ("colour", "shape", "motion")  # names of the attributes


class Alignment:
    """Share of the attributes in which a video agrees with its caption: 0, 1/3, 2/3 or 1 with all three attributes.

    Args:
      attributes: names of the attributes that count, a subset of `NAMES`.
    Raises:
      UserError: an attribute does not exist.
    """

    def __init__(self, attributes: Sequence[str] = NAMES):
        if not attributes or set(attributes) - set(NAMES):
            raise UserError(f"attributes are some of {', '.join(NAMES)}, not {list(attributes)}")
        self._attributes = tuple(attributes)

    def __call__(
        self, frames: Float[Array | np.ndarray, "b f h w 3"], captions: Sequence[str]
    ) -> Float[np.ndarray, " b"]:
        """Rewards of square videos with pixels in 0..1.

        Raises:
          UserError: a caption is not of the shapes world.
        """
        right = alignment(frames, captions)
        return np.mean([right[attribute] for attribute in self._attributes], axis=0)


class BorderBrightness:
    """Mean of the border pixels, 0..1: about the grey level of the background.

    Args:
      width: width of the border in pixels.
    Raises:
      UserError: the width is less than 1.
    """

    def __init__(self, width: int = 2):
        if width < 1:
            raise UserError(f"width = {width}: the border is one pixel wide, or more")
        self._width = width

    def prepare(self, captions: Sequence[str]) -> dict:
        """{}: the reward does not depend on the captions."""
        del captions
        return {}

    def score(self, frames: Frames, prepared: dict) -> PerExample:
        """Rewards of videos, linear in the pixels."""
        del prepared
        inside = np.zeros(frames.shape[2:4], bool)
        inside[self._width : -self._width, self._width : -self._width] = True
        return frames[:, :, ~inside].mean((1, 2, 3))


class CaptionColour:
    """Cosine similarity, -1..1, of two chromas (RGB minus its mean): the video's mean and the caption's colour."""

    def prepare(self, captions: Sequence[str]) -> dict[str, Float32[np.ndarray, "b 3"]]:
        """The unit chroma of the colour in each caption.

        Raises:
          UserError: a caption names no colour of the shapes world.
        """
        named = [next((word for word in caption.split() if word in COLOURS), None) for caption in captions]
        if None in named:
            raise UserError(f"{captions[named.index(None)]!r} names none of {', '.join(COLOURS)}")
        chroma = np.array([COLOURS[name] for name in named], np.float32)
        chroma -= chroma.mean(1, keepdims=True)
        return {"chroma": chroma / np.linalg.norm(chroma, axis=1, keepdims=True)}

    def score(self, frames: Frames, prepared: dict[str, Array | np.ndarray]) -> PerExample:
        """Rewards of videos: 0 for a grey video, with a finite gradient."""
        chroma = frames.mean((1, 2, 3))
        chroma -= chroma.mean(1, keepdims=True)
        return (chroma * prepared["chroma"]).sum(1) / jnp.sqrt((chroma**2).sum(1) + 1e-8)


class CaptionArea:
    """Projection of the mean chroma on the unit chroma of the caption's colour, which grows with the coloured area."""

    prepare = CaptionColour.prepare

    def score(self, frames: Frames, prepared: dict[str, Array | np.ndarray]) -> PerExample:
        """Rewards of videos, linear in the pixels."""
        chroma = frames.mean((1, 2, 3))
        return ((chroma - chroma.mean(1, keepdims=True)) * prepared["chroma"]).sum(1)


def caption_speed(frames: Float[Array | np.ndarray, "b f h w 3"], captions: Sequence[str]) -> Float[np.ndarray, " b"]:
    """Speed in the caption's direction, in pixels per frame; for a caption of a still shape, minus the speed.

    Raises:
      UserError: a caption is not of the shapes world.
    """
    directions = np.array(list(MOTIONS.values()))[attributes(captions)[:, 2]]
    velocity = read(np.asarray(frames)).velocity
    speed = np.where(directions.any(1), (velocity * directions).sum(1), -np.linalg.norm(velocity, axis=1))
    return speed.astype(np.float32)
