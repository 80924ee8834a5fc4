"""Small rewards for the shapes world, with a gradient where they are written in JAX."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from dollar_jax.data.shapes import COLOURS, MOTIONS, attributes
from dollar_jax.errors import UserError
from dollar_jax.rewards.shapes import alignment, read
from dollar_jax.types import PerExample

Frames = Float[Array, "b f h w 3"]  # 0..1
NAMES = ("colour", "shape", "motion")  # of the attributes


class Alignment:
    """The share of the attributes that a video shows as its caption says: 0, 1/3, 2/3 or 1 for all three of them.

    Args:
      attributes: those that count.
    Raises:
      UserError: one that the shapes world does not have.
    """

    def __init__(self, attributes: Sequence[str] = NAMES):
        if not attributes or set(attributes) - set(NAMES):
            raise UserError(f"attributes are some of {', '.join(NAMES)}, not {list(attributes)}")
        self._attributes = tuple(attributes)

    def __call__(
        self, frames: Float[Array | np.ndarray, "b f h w 3"], captions: Sequence[str]
    ) -> Float[np.ndarray, " b"]:
        """Of square videos, 0..1.

        Raises:
          UserError: a caption that is not of the shapes world.
        """
        right = alignment(frames, captions)
        return np.mean([right[attribute] for attribute in self._attributes], axis=0)


class BorderBrightness:
    """The mean of the pixels at the border, 0..1: about the background's grey.

    Args:
      width: of the border, in pixels.
    """

    def __init__(self, width: int = 2):
        if width < 1:
            raise UserError(f"width = {width}: the border is one pixel wide, or more")
        self._width = width

    def prepare(self, captions: Sequence[str]) -> dict:
        """Nothing: it looks at frames alone."""
        del captions
        return {}

    def score(self, frames: Frames, prepared: dict) -> PerExample:
        """Linear in the pixels."""
        del prepared
        inside = np.zeros(frames.shape[2:4], bool)
        inside[self._width : -self._width, self._width : -self._width] = True
        return frames[:, :, ~inside].mean((1, 2, 3))


class CaptionColour:
    """The cosine of a video's mean chroma (RGB less its mean) with that of the colour its caption names, -1..1."""

    def prepare(self, captions: Sequence[str]) -> dict[str, Float32[np.ndarray, "b 3"]]:
        """The unit chroma of the colour in each caption.

        Raises:
          UserError: a caption without a colour of the shapes world.
        """
        named = [next((word for word in caption.split() if word in COLOURS), None) for caption in captions]
        if None in named:
            raise UserError(f"{captions[named.index(None)]!r} names none of {', '.join(COLOURS)}")
        chroma = np.array([COLOURS[name] for name in named], np.float32)
        chroma -= chroma.mean(1, keepdims=True)
        return {"chroma": chroma / np.linalg.norm(chroma, axis=1, keepdims=True)}

    def score(self, frames: Frames, prepared: dict[str, Array | np.ndarray]) -> PerExample:
        """Of grey videos it is 0, and has a finite gradient."""
        chroma = frames.mean((1, 2, 3))
        chroma -= chroma.mean(1, keepdims=True)
        return (chroma * prepared["chroma"]).sum(1) / jnp.sqrt((chroma**2).sum(1) + 1e-8)


class CaptionArea:
    """How much of a video has the colour that its caption names: its mean chroma along that of the colour."""

    prepare = CaptionColour.prepare

    def score(self, frames: Frames, prepared: dict[str, Array | np.ndarray]) -> PerExample:
        """Linear in the pixels."""
        chroma = frames.mean((1, 2, 3))
        return ((chroma - chroma.mean(1, keepdims=True)) * prepared["chroma"]).sum(1)


def caption_speed(frames: Float[Array | np.ndarray, "b f h w 3"], captions: Sequence[str]) -> Float[np.ndarray, " b"]:
    """Pixels a frame in the direction that the caption names; of one that names none, minus the speed.

    Raises:
      UserError: a caption that is not of the shapes world.
    """
    directions = np.array(list(MOTIONS.values()))[attributes(captions)[:, 2]]
    velocity = read(np.asarray(frames)).velocity
    speed = np.where(directions.any(1), (velocity * directions).sum(1), -np.linalg.norm(velocity, axis=1))
    return speed.astype(np.float32)
