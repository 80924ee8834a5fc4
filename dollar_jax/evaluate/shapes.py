"""Reads shape, colour and motion from clips of the shapes world, once for all metrics."""

from dollar_jax.evaluate.measure import Clips
from dollar_jax.rewards import shapes


def reading(clips: Clips) -> shapes.Reading:
    """The reading of clips, a function for `Clips.once`."""
    return shapes.read(clips.frames)
