"""Vendi score: the effective number of different videos of a caption."""

from dataclasses import replace

import numpy as np

from dollar_jax.errors import UserError
from dollar_jax.evaluate.embedding import embedder, named_by
from dollar_jax.evaluate.measure import Clips, Column
from dollar_jax.evaluate.vendi import diversity


class Vendi:
    """Eq. 17, mean and standard deviation over captions.

    There is no value for fewer than two clips of a caption, whose score would be 1 whatever they show, or for another
    number of clips of one caption than of the next, because the score grows with this number.

    Args:
      key_frames: number of frames to compare, evenly spaced from the first to the last.
      features: import path of the function that computes features of frames; a plain name is in
        `dollar_jax.evaluate.features`. The columns are `vendi_NAME`, `vendi` for pixels: scores of different features
        are not comparable.
      weights: file or folder with the weights of the features, "" for none.
    Raises:
      UserError: fewer than 2 key frames, unknown features, or weights that do not fit.
    """

    columns = (
        Column(
            "vendi",
            "Vendi score",
            "Effective number of different videos of one prompt. Noise counts as a difference too: see detail.",
            better="near",
        ),
        Column(
            "vendi_std",
            "Deviation of Vendi",
            "Standard deviation of the Vendi score over prompts.",
            shown=False,
        ),
    )

    least_clips = 0

    def __init__(self, key_frames: int = 3, features: str = "pixels", weights: str = ""):
        if key_frames < 2:
            raise UserError(f"key_frames = {key_frames}: the first and the last frame are two")
        self._embed, self._key_frames = embedder(features, weights), key_frames
        if features != "pixels":
            name = named_by(features)
            self.columns = tuple(
                replace(column, key=column.key.replace("vendi", f"vendi_{name}"), label=f"{column.label} ({name})")
                for column in self.columns
            )

    def fit(self, data: Clips | None):
        """Ignores real clips: the score of a model needs no reference."""
        del data
        return self._measure

    def _measure(self, clips: Clips) -> dict[str, float | None]:
        names, index, counts = np.unique(np.asarray(clips.captions), return_inverse=True, return_counts=True)
        if counts.min() < 2 or counts.max() > counts.min():
            return dict.fromkeys(column.key for column in self.columns)
        pixels = clips.pixels
        by_caption = pixels[np.argsort(index, kind="stable")].reshape(len(names), -1, *pixels.shape[1:])
        spacing = max(1, (pixels.shape[1] - 1) // (self._key_frames - 1))
        diversities = diversity(by_caption, spacing, self._embed)
        mean, deviation = (column.key for column in self.columns)
        return {mean: float(diversities.mean()), deviation: float(diversities.std())}


vendi = Vendi  # its name in a config
