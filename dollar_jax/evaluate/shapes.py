"""What clips of the shapes world show, read once for all metrics."""

from dollar_jax.evaluate.measure import Clips
from dollar_jax.rewards import shapes


def reading(clips: Clips) -> shapes.Reading:
    """For `Clips.once`."""
    return shapes.read(clips.frames)
