"""Alarms for a collapse: whether the videos of a student in training lose their structure, motion or variety.

A collapsed student makes the same video again and again, still videos, one colour, or noise, and its losses do not show
it. Its videos are compared with those before the first update, when it equals the teacher; their sharpness is compared
with data, since first samples in few steps are too smooth.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from dollar_jax.evaluate.vendi import vendi

PREFIX = "collapse/"
CELLS = 4  # height and width of a thumbnail
LEAST, MOST = 0.4, 2.5  # bounds relative to the value at the start, and to the sharpness of data

Videos = UInt8[np.ndarray, "n F H W 3"]
Video = Float32[np.ndarray, "F H W 3"]  # in 0..1


class Symptom(NamedTuple):
    """A value that falls in a collapse, and the words of its alarm."""

    name: str
    words: str


SYMPTOMS = (
    Symptom("contrast", "its frames are nearly of one colour"),
    Symptom("change", "its videos hardly move"),
    Symptom("variance", "its videos are nearly all alike, whatever the caption"),
    Symptom("vendi", "its videos of one caption are nearly all alike"),
)


def sharpness(videos: Videos) -> float:
    """Mean |pixel - mean of its four neighbours| of pixels in 0..1: large for noise, 0 for one colour."""
    rough = []
    for frames in _one_by_one(videos):
        neighbours = frames[:, :-2, 1:-1] + frames[:, 2:, 1:-1] + frames[:, 1:-1, :-2] + frames[:, 1:-1, 2:]
        rough.append(np.abs(frames[:, 1:-1, 1:-1] - neighbours / 4).mean())
    return float(np.mean(rough))


def measure(videos: Videos, captions: Sequence[str], data_sharpness: float | None) -> dict[str, float]:
    """Measures signs of a collapse.

    Args:
      videos: ordered by caption, with the same number of videos for each caption.
      captions: caption of each video.
      data_sharpness: `sharpness` of real videos, None if there are none.
    Returns:
      values of pixels in 0..1, with names after `PREFIX`:
      contrast   standard deviation of the pixels of a frame, mean over frames
      change     mean absolute difference of neighbouring frames; absent for videos of one frame
      variance   variance over all videos of their thumbnails, mean over pixels. A thumbnail has CELLS x CELLS means
                 over space and time, so that noise does not count
      vendi      Eq. 17 on these thumbnails minus 1, mean over captions: 0 if all are equal; absent with one video per
                 caption
      sharpness  `sharpness` divided by `data_sharpness`; absent without it
    """
    thumbnails, contrast, change = [], [], []
    for frames in _one_by_one(videos):
        thumbnails.append(_thumbnail(frames))
        contrast.append(frames.std((1, 2)).mean())
        change.extend(np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)))
    values = {"contrast": np.mean(contrast), "variance": np.var(thumbnails, axis=0).mean()}
    if change:
        values["change"] = np.mean(change)
    names = len(set(captions))
    if len(videos) > names:
        groups = np.reshape(thumbnails, (names, len(videos) // names, -1))
        values["vendi"] = np.mean([vendi(group) for group in groups]) - 1
    if data_sharpness is not None:
        values["sharpness"] = sharpness(videos) / data_sharpness
    return {PREFIX + name: float(value) for name, value in values.items()}


def _one_by_one(videos: Videos) -> Iterator[Video]:
    """The videos with pixels in 0..1; all of them would take four times the memory."""
    return (frames / np.float32(255) for frames in videos)


def _thumbnail(frames: Video) -> Float32[np.ndarray, f"{CELLS} {CELLS} 3"]:
    rows, columns = (side - side % CELLS for side in frames.shape[1:3])
    cells = frames[:, :rows, :columns].reshape(-1, CELLS, rows // CELLS, CELLS, columns // CELLS, 3)
    return cells.mean((0, 2, 4))


def alarms(start: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The alarms in words; [] for a healthy student.

    Args:
      start, now: lines of a log with the values of `measure`; None is a value that is not finite.
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
