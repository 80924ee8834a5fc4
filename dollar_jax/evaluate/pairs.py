"""Metrics of the world of pairs, for `config.report.metrics`: alignment, cleanness and spread."""

import numpy as np

from dollar_jax.evaluate.measure import Clips
from dollar_jax.evaluate.metrics.alignment import columns_of, shares
from dollar_jax.evaluate.metrics.clean_db import clean_db as clean_db_of_shapes
from dollar_jax.evaluate.metrics.spread import Spread
from dollar_jax.rewards import pairs


def reading(clips: Clips) -> pairs.Reading:
    """The reading of clips, a function for `Clips.once`."""
    return pairs.read(clips.frames)


def alignment(clips: Clips) -> dict[str, float]:
    """Share of clips that agree with their caption in all attributes, and shares for each attribute.

    Raises:
      UserError: a caption is not from the world of pairs.
    """
    return shares(pairs.agreement(clips.once(reading), clips.captions))


alignment.columns = columns_of(("colour", "shape", "relation", "motion"))


def clean_db(clips: Clips) -> float:
    """PSNR in dB to the nearest valid rendering, mean over clips; blur lowers it little."""
    return float(np.mean(clips.once(reading).clean_db))


clean_db.columns = clean_db_of_shapes.columns


class PairsSpread(Spread):
    """`Spread` of the background and of the middle of the pair."""

    reading = staticmethod(reading)


spread = PairsSpread  # its name in a config
