"""Cleanness: PSNR of clips of the shapes world to the nearest valid rendering."""

import numpy as np

from dollar_jax.evaluate.measure import Clips, Column
from dollar_jax.evaluate.shapes import reading


def clean_db(clips: Clips) -> float:
    """PSNR in dB to the nearest valid rendering, mean over clips; blur lowers it little."""
    return float(np.mean(clips.once(reading).clean_db))


clean_db.columns = (
    Column(
        "clean_db",
        "Cleanness",
        "Closeness of each clip to a perfect drawing of its shape. Noise lowers it, blur hardly does: see detail.",
        better="near",
        unit="dB",
    ),
)
