"""The shapes world: short captioned videos of one moving shape, rendered on the fly.

The caption names colour, shape and motion; a long caption also names the background, dark or light. Size, speed,
position and the exact grey are random. Lengths below are for 9 frames of 32 x 32 pixels; other resolutions and frame
counts show the same clip, scaled.
"""

import itertools
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from dollar_jax.errors import UserError

COLOURS = {"red": (0.9, 0.15, 0.15), "green": (0.1, 0.75, 0.2), "blue": (0.2, 0.3, 0.95), "yellow": (0.95, 0.85, 0.1)}
SHAPES = ("square", "ring", "cross")
MOTIONS = {  # (x, y) of the unit velocity, y downwards as in an image
    "moving left": (-1.0, 0.0),
    "moving right": (1.0, 0.0),
    "moving up": (0.0, -1.0),
    "moving down": (0.0, 1.0),
    "standing still": (0.0, 0.0),
}
TONES = ("dark", "light")  # of the background: below and above the middle of `BACKGROUND`
CAPTIONS = tuple(f"a {' '.join(words)}" for words in itertools.product(COLOURS, SHAPES, MOTIONS))

# Caption -> (colour, shape, motion), indices into the three tables above.
ATTRIBUTES = dict(zip(CAPTIONS, np.ndindex(len(COLOURS), len(SHAPES), len(MOTIONS)), strict=True))


def _lengthened(caption: str, tone: int) -> str:
    return f"{caption} on a {TONES[tone]} background"


# A long caption for each of CAPTIONS, in the same order. Half of them are dark, balanced over every pair of attributes.
LONG_CAPTIONS = tuple(_lengthened(caption, sum(indices) % 2) for caption, indices in ATTRIBUTES.items())
_MEANINGS = {caption: (*indices, -1) for caption, indices in ATTRIBUTES.items()}
for _tone in range(len(TONES)):
    _MEANINGS |= {_lengthened(caption, _tone): (*indices, _tone) for caption, indices in ATTRIBUTES.items()}

SIZE = (6.0, 7.0)  # pixels
TRAVEL = (7.6, 8.4)  # pixels from the first frame to the last: .95 to 1.05 per frame
JITTER = 1.5  # pixels: largest distance of the path's middle from the image's middle, in x and in y
BACKGROUND = (0.1, 0.6)  # grey level
RESOLUTION = 32  # pixels per side of the image for which the lengths above are given


def attributes(captions: Sequence[str]) -> Int[np.ndarray, "n 4"]:
    """Attributes of captions: indices into COLOURS, SHAPES, MOTIONS and TONES; the index into TONES is -1 for a short
    caption.

    Raises:
      UserError: a caption is not of the shapes world.
    """
    if strangers := set(captions) - _MEANINGS.keys():
        raise UserError(f"{strangers.pop()!r} is not a caption of the shapes world, such as {CAPTIONS[0]!r}")
    return np.array([_MEANINGS[caption] for caption in captions])


def tone(background: Float[np.ndarray, "*n"] | float) -> Int[np.ndarray, "*n"]:
    """Index into TONES of a background with this grey level, 0..1."""
    return np.asarray(background > np.mean(BACKGROUND), int)


def coverage(
    shape: str, size: Float[np.ndarray, "*n"], centre: Float[np.ndarray, "*n 2"], pixels: int
) -> Float[np.ndarray, "*n h w"]:
    """Anti-aliased masks of n shapes of one kind: the share of each pixel that the shape covers, 0..1.

    Args:
      shape: one of `SHAPES`.
      size: sizes in pixels. A square has half-side .9 size; a ring radii .5 and 1.1 size; a cross arms of half-length
        1.1 size and half-width .36 size.
      centre: (x, y) in pixels from the upper left corner of the image.
      pixels: height and width of the image.
    """
    middles = np.arange(pixels, dtype=np.float32) + np.float32(0.5)
    x, y = np.moveaxis(np.abs(middles - centre[..., None].astype(np.float32)), -2, 0)
    x, y, size = x[..., None, :], y[..., :, None], size[..., None, None].astype(np.float32)
    match shape:
        case "square":
            return _box(x, y, 0.9 * size, 0.9 * size)
        case "cross":
            long, short = 1.1 * size, 0.36 * size
            return _box(x, y, long, short) + _box(x, y, short, long) - _box(x, y, short, short)
        case "ring":
            distance = np.sqrt(x**2 + y**2)
            return _within(distance, 1.1 * size) - _within(distance, 0.5 * size)
    raise ValueError(f"{shape!r} is not one of {SHAPES}")


def _box(x: np.ndarray, y: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    return _within(x, width) * _within(y, height)


def _within(distance: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The share of a pixel at this distance that lies within `radius`."""
    return np.clip(radius - distance + np.float32(0.5), 0, 1)


def path(
    position: Float[np.ndarray, "*n 2"], velocity: Float[np.ndarray, "*n 2"], frames: int
) -> Float[np.ndarray, "*n f 2"]:
    """Centres of a shape that is at `position` in the middle of the clip and moves `velocity` pixels per frame."""
    times = np.arange(frames) - (frames - 1) / 2
    return position[..., None, :] + velocity[..., None, :] * times[:, None]


def render(
    colour: str, shape: str, size: float, centres: Float[np.ndarray, "f 2"], background: float, pixels: int = RESOLUTION
) -> Float[np.ndarray, "f h w 3"]:
    """A clip with pixels in 0..1: a `shape` in `COLOURS[colour]`, centred at `centres`, on a grey background.

    Lengths are in pixels; `centres` are (x, y) from the upper left corner.
    """
    mask = coverage(shape, np.full(len(centres), size), centres, pixels)[..., None]
    return np.float32(background) + mask * (np.array(COLOURS[colour], np.float32) - np.float32(background))


class World(ABC):
    """A random-access source of rendered clips. Clip `i` is a pure function of `seed` and `i`.

    A clip is {'video': uint8 [frames size size 3], 'caption': str}; the caption is drawn uniformly from `captions`.

    Attributes:
      clips: number of clips.
      captions: the captions that are drawn, by default all of the world's.
    """

    def __init__(self, clips: int, seed: int, frames: int, size: int, captions: Sequence[str]):
        self.clips, self.seed, self.frames, self.size, self.captions = clips, seed, frames, size, tuple(captions)

    @abstractmethod
    def draw(self, random: np.random.Generator, caption: str) -> tuple[Float[np.ndarray, "f h w 3"], str]:
        """A clip of this caption with pixels in 0..1, and the caption that goes with it."""

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> dict:
        index = operator.index(index)
        if not 0 <= index < self.clips:
            raise IndexError(f"clip {index} of {self.clips}")
        random = np.random.default_rng((self.seed, index))
        video, caption = self.draw(random, self.captions[random.integers(len(self.captions))])
        return {"video": np.rint(video * 255).astype(np.uint8), "caption": caption}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in vars(self).items() if name != "captions")
        return f"{type(self).__name__}({arguments}) of {len(self.captions)} captions"


class ShapesWorld(World):
    """Clips of the shapes world. With `long_captions`, the caption of the same clip also names the background."""

    def __init__(
        self,
        clips: int,
        seed: int,
        frames: int = 9,
        size: int = RESOLUTION,
        long_captions: bool = False,
    ):
        super().__init__(clips, seed, frames, size, CAPTIONS)
        self.long_captions = long_captions

    def draw(self, random: np.random.Generator, caption: str) -> tuple[Float[np.ndarray, "f h w 3"], str]:
        """A clip of this caption, and the caption, lengthened if captions are long."""
        colour, shape, motion = ATTRIBUTES[caption]
        unit = self.size / RESOLUTION
        speed = random.uniform(*TRAVEL) * unit / max(self.frames - 1, 1)
        position = self.size / 2 + random.uniform(-JITTER, JITTER, 2) * unit
        velocity = speed * np.array(list(MOTIONS.values())[motion])
        size, background = random.uniform(*SIZE) * unit, random.uniform(*BACKGROUND)
        centres = path(position, velocity, self.frames)
        video = render(list(COLOURS)[colour], SHAPES[shape], size, centres, background, self.size)
        return video, _lengthened(caption, int(tone(background))) if self.long_captions else caption
