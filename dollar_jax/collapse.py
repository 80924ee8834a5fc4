"""Collapse, told in plain words: do the videos of a student in training still have structure, move, and differ?

A student that lost its way makes one video, still ones, or one colour, while its losses look as they did. What follows
knows nothing of the data: a student is compared with itself before its first update, when it was as its teacher.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dollar_jax.evaluate.general import KEY_FRAMES
from dollar_jax.evaluate.vendi import diversity

PREFIX = "collapse/"
LEAST = 0.4  # of what there was at the start


class Symptom(NamedTuple):
    """Something that has nearly gone."""

    name: str
    words: str


SYMPTOMS = (
    Symptom("contrast", "its frames are nearly of one colour"),
    Symptom("change", "its videos hardly move"),
    Symptom("variance", "its videos are nearly all alike, whatever the caption"),
    Symptom("vendi", "its videos of one caption are nearly all alike"),
)


def measure(frames: Float[np.ndarray, "n F H W 3"], captions: Sequence[str]) -> dict[str, float]:
    """What a collapse takes from videos 0..1, as many for each caption, those of a caption side by side.

    Returns:
      contrast   deviation of the pixels of a frame, mean over frames
      change     mean difference of neighbouring frames; not for single ones
      variance   variance of a pixel over all videos, mean over pixels
      vendi      Eq. 17 on pixels less 1, mean over captions: 0 where all are the same; not for one video a caption
    """
    values = {"contrast": frames.std((2, 3)).mean(), "variance": frames.var(0).mean()}
    if frames.shape[1] > 1:
        values["change"] = np.abs(np.diff(frames, axis=1)).mean()
    names = len(set(captions))
    if len(captions) > names:
        by_caption = frames.reshape(names, -1, *frames.shape[1:])
        spacing = max(1, (frames.shape[1] - 1) // (KEY_FRAMES - 1))
        values["vendi"] = diversity(by_caption, spacing).mean() - 1
    return {PREFIX + name: float(value) for name, value in values.items()}


def alarms(start: Mapping[str, float | None], now: Mapping[str, float | None]) -> list[str]:
    """What has gone since the start, in words; [] of a healthy student.

    Args:
      start, now: values of `measure`, and any others; None where one is not finite.
    """
    found = []
    for name, words in SYMPTOMS:
        before, value = (values.get(PREFIX + name) for values in (start, now))
        if before and (value is None or value < LEAST * before):
            found.append(f"{words} ({name} {value or 0:.3g}, {before:.3g} at the start)")
    return found
