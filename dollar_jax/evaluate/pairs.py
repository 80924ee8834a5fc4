"""Metrics of the world of pairs, for `config.report.metrics`: alignment, cleanness and spread."""

import numpy as np

from dollar_jax.evaluate.measure import Clips, Column
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
    shares = {name: float(right.mean()) for name, right in pairs.agreement(clips.once(reading), clips.captions).items()}
    return {"alignment": shares.pop("all"), **shares}


alignment.columns = (
    Column(
        "alignment",
        "Alignment",
        "Share of clips that show everything their caption says.",
        better="higher",
        unit="%",
        ideal=1.0,
    ),
    *(
        Column(
            name, name.capitalize(), f"Share of clips that show the {name} of their caption.", "higher", "%", 1.0, False
        )
        for name in ("colour", "shape", "relation", "motion")
    ),
)


def clean_db(clips: Clips) -> float:
    """PSNR in dB to the nearest valid rendering, mean over clips; blur lowers it little."""
    return float(np.mean(clips.once(reading).clean_db))


clean_db.columns = clean_db_of_shapes.columns


class PairsSpread(Spread):
    """`Spread` of the background and of the middle of the pair."""

    reading = staticmethod(reading)


spread = PairsSpread  # its name in a config
