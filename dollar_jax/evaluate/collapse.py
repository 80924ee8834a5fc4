"""Collapse, told in plain words: do the videos of a student in training still have structure, move, and differ?

A student that lost its way makes one video, still ones, one colour, or noise, while its losses tell nothing. What it
makes is compared with what it made before its first update, when it was as its teacher; its sharpness with data's,
since first samples in few steps are too smooth.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dollar_jax.evaluate.vendi import vendi

PREFIX = "collapse/"
CELLS = 4  # a thumbnail's side
LEAST, MOST = 0.4, 2.5  # of what there was at the start, of what data have

Videos = Float[np.ndarray, "n F H W 3"]


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


def sharpness(frames: Videos) -> float:
    """The mean difference between a pixel and its four neighbours' mean, of videos 0..1: high in noise, 0 in a blur."""
    neighbours = frames[:, :, :-2, 1:-1] + frames[:, :, 2:, 1:-1] + frames[:, :, 1:-1, :-2] + frames[:, :, 1:-1, 2:]
    return float(np.abs(frames[:, :, 1:-1, 1:-1] - neighbours / 4).mean())


def measure(frames: Videos, captions: Sequence[str], data_sharpness: float) -> dict[str, float]:
    """What tells a collapse, from videos 0..1, as many for each caption, those of a caption side by side.

    Returns:
      contrast   deviation of the pixels of a frame, mean over frames
      change     mean difference of neighbouring frames; not for single ones
      variance   over all videos, mean over the pixels of their thumbnails: CELLS x CELLS, the mean over frames, so that
                 noise is not taken for variety
      vendi      Eq. 17 on these thumbnails, less 1, mean over captions: 0 where all are the same; not for one video a
                 caption
      sharpness  relative to `data_sharpness`, the `sharpness` of real videos
    """
    n, _, height, width, _ = frames.shape
    rows, columns = (side - side % CELLS for side in (height, width))
    cells = frames[:, :, :rows, :columns].reshape(n, -1, CELLS, rows // CELLS, CELLS, columns // CELLS, 3)
    thumbnails = cells.mean((1, 3, 5))
    values = {"contrast": frames.std((2, 3)).mean(), "variance": thumbnails.var(0).mean()}
    if frames.shape[1] > 1:
        values["change"] = np.abs(np.diff(frames, axis=1)).mean()
    names = len(set(captions))
    if n > names:
        values["vendi"] = np.mean([vendi(group) for group in thumbnails.reshape(names, n // names, -1)]) - 1
    values["sharpness"] = sharpness(frames) / data_sharpness
    return {PREFIX + name: float(value) for name, value in values.items()}


def alarms(start: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is wrong, in words; [] of a healthy student.

    Args:
      start, now: values of `measure`, None where one is not finite, and anything else.
    """
    found = []
    for name, words in SYMPTOMS:
        before, value = (values.get(PREFIX + name) for values in (start, now))
        if before and (value is None or value < LEAST * before):
            found.append(f"{words} ({name} {value or 0:.3g}, {before:.3g} at the start)")
    rough = now.get(PREFIX + "sharpness", 0.0)
    if rough is None or rough > MOST:
        found.append(f"its frames are noise ({math.nan if rough is None else rough:.3g} times the sharpness of data)")
    return found
