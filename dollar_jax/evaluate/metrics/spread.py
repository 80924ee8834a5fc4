"""Spread: variation of background and position among clips of one caption of the shapes world."""

from collections.abc import Callable, Sequence

import numpy as np

from dollar_jax.evaluate.distribution import pooled_deviation
from dollar_jax.evaluate.measure import Clips, Column
from dollar_jax.evaluate.shapes import reading
from dollar_jax.rewards import pairs, shapes

Reading = shapes.Reading | pairs.Reading


class Spread:
    """Standard deviations within captions, divided by those of real clips: 1 is data, 0 is a collapse.

    The value is the mean of two ratios: for the background (grey in 0..1), and for the middle of the path in x and y
    (pixels). Only clips that show a shape are used.
    """

    columns = (
        Column(
            "spread",
            "Spread",
            "Variation of clips of one caption in background and position, relative to real clips. 0 is a collapse.",
            better="near",
            ideal=1.0,
        ),
        Column(
            "background_std",
            "Spread of backgrounds",
            "Standard deviation of the grey (0..1) within captions.",
            better="near",
            shown=False,
        ),
        Column(
            "position_std",
            "Spread of positions",
            "Standard deviation of the middle of the path within captions.",
            better="near",
            unit="px",
            shown=False,
        ),
    )

    reading = staticmethod(reading)

    def fit(self, data: Clips) -> Callable[[Clips], dict[str, float]]:
        real_background, real_position = deviations(data.once(self.reading), data.captions)

        def measure(clips: Clips) -> dict[str, float]:
            background, position = deviations(clips.once(self.reading), clips.captions)
            return {
                "spread": (background / real_background + position / real_position) / 2,
                "background_std": background,
                "position_std": position,
            }

        return measure


def deviations(read: Reading, captions: Sequence[str]) -> tuple[float, float]:
    """Standard deviations of background and position within captions."""
    groups = np.asarray(captions)[read.found].tolist()
    values = read.background[read.found, None], read.position[read.found]
    return pooled_deviation(values[0], groups), pooled_deviation(values[1], groups)


spread = Spread  # its name in a config
