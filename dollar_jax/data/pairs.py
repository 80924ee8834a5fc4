"""The world of pairs: short captioned videos of two shapes and how they stand and move to each other.

A harder world than that of `data.shapes`, of whose shapes and colours it is made: 648 captions such as "a red ring left
of a blue square moving apart". Sizes, distance, speed, position and grey are random. Lengths below are for images of 48
x 48 pixels; other resolutions and frame counts show the same clip, scaled.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from dollar_jax.data.shapes import BACKGROUND, COLOURS, SHAPES, World, coverage, path
from dollar_jax.errors import UserError

RELATIONS = {"left of": (1.0, 0.0), "above": (0.0, 1.0)}  # (x, y) of the unit vector from the first shape to the second
MOTIONS = {"moving apart": 1.0, "moving closer": -1.0, "standing still": 0.0}  # sign of the growth of the distance

# Caption -> (colour, shape of the first, colour, shape of the second, relation, motion), indices into the tables.
ATTRIBUTES: dict[str, tuple[int, ...]] = {
    f"a {list(COLOURS)[c]} {SHAPES[s]} {relation} a {list(COLOURS)[d]} {SHAPES[t]} {motion}": (c, s, d, t, r, m)
    for (c, d), s, t, (r, relation), (m, motion) in itertools.product(
        itertools.permutations(range(len(COLOURS)), 2),
        range(len(SHAPES)),
        range(len(SHAPES)),
        enumerate(RELATIONS),
        enumerate(MOTIONS),
    )
}
CAPTIONS = tuple(ATTRIBUTES)

RESOLUTION = 48  # pixels per side of the image for which these lengths are given
SIZE = (5.0, 6.0)  # see `data.shapes.coverage`
DISTANCE = (19.0, 21.0)  # of the two middles, in the middle of the clip
TRAVEL = (8.0, 9.0)  # change of the distance from the first frame to the last
JITTER = 2.0  # largest distance of the pair's middle from the image's middle, in x and in y
SLIP = 1.0  # largest distance of each shape from the line of the relation


def attributes(captions: Sequence[str]) -> Int[np.ndarray, "n 6"]:
    """Attributes of captions, as in `ATTRIBUTES`.

    Raises:
      UserError: a caption is not of the world of pairs.
    """
    if strangers := set(captions) - ATTRIBUTES.keys():
        raise UserError(f"{strangers.pop()!r} is not a caption of the world of pairs, such as {CAPTIONS[0]!r}")
    return np.array([ATTRIBUTES[caption] for caption in captions])


def some_captions(count: int) -> tuple[str, ...]:
    """The same `count` captions each time, drawn from all; each relation and motion is in as many of them."""
    random, kinds = np.random.default_rng(0), len(RELATIONS) * len(MOTIONS)
    order = np.stack([random.permutation(len(CAPTIONS) // kinds) * kinds + kind for kind in range(kinds)], 1)
    return tuple(CAPTIONS[index] for index in order.ravel()[:count])


class PairsWorld(World):
    """Clips of the world of pairs."""

    def __init__(
        self,
        clips: int,
        seed: int,
        frames: int = 17,
        size: int = RESOLUTION,
        captions: Sequence[str] = CAPTIONS,
    ):
        super().__init__(clips, seed, frames, size, captions)

    def draw(self, random: np.random.Generator, caption: str) -> tuple[Float[np.ndarray, "f h w 3"], str]:
        """A clip of this caption, and the caption."""
        *shapes, relation, motion = ATTRIBUTES[caption]
        unit = self.size / RESOLUTION
        along = np.array(list(RELATIONS.values())[relation])
        across = along[::-1]
        middle = self.size / 2 + random.uniform(-JITTER, JITTER, 2) * unit
        speed = list(MOTIONS.values())[motion] * random.uniform(*TRAVEL) * unit / max(self.frames - 1, 1)
        distance, background = random.uniform(*DISTANCE) * unit, random.uniform(*BACKGROUND)
        video = np.full((self.frames, self.size, self.size, 3), background, np.float32)
        for colour, shape, side in zip(shapes[::2], shapes[1::2], (-0.5, 0.5), strict=True):
            position = middle + side * distance * along + random.uniform(-SLIP, SLIP) * unit * across
            centres = path(position, side * speed * along, self.frames)
            mask = coverage(SHAPES[shape], np.full(self.frames, random.uniform(*SIZE) * unit), centres, self.size)
            video += mask[..., None] * (np.array(list(COLOURS.values())[colour], np.float32) - np.float32(background))
        return video, caption
