"""Motion, flicker and smoothness of videos: metrics of VBench (arXiv 2311.17982) without its networks.

All metrics use the 8-bit pixels and ignore the captions.
"""

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Array, Float, Float64, UInt8

from dollar_jax.errors import UserError
from dollar_jax.pictures import to_8_bits

Frames = Float[Array | np.ndarray, "b f h w 3"]  # pixel videos, 0..1
Scores = Float64[np.ndarray, " b"]

FASTEST = 0.05  # share of pixels that dynamic degree averages over


def dynamic_degree(frames: Frames, captions: Sequence[str]) -> Scores:
    """Mean speed of the fastest 5 % of pixels, in pixels per frame; the mean over pairs of neighbouring frames.

    The optical flow is OpenCV's dense inverse search (arXiv 1603.03590) between grey images. VBench uses the network
    RAFT, so its numbers differ. VBench then takes a video at 8 frames per second and reports only whether a quarter of
    its pairs exceed 6 pixels for every 256 pixels of the shorter side.

    Raises:
      UserError: a single frame.
    """
    del captions
    return np.array([np.mean(_speeds(video)) for video in _videos(frames, 2)])


def temporal_flickering(frames: Frames, captions: Sequence[str]) -> Scores:
    """(255 - mean absolute difference of neighbouring frames) / 255, as in VBench: 1 for a still video.

    VBench applies this metric to still scenes only, because every motion lowers it.

    Raises:
      UserError: a single frame.
    """
    del captions
    videos = _videos(frames, 2).astype(np.float32)
    return 1 - np.abs(np.diff(videos, axis=1)).mean((1, 2, 3, 4), dtype=np.float64) / 255


def motion_smoothness(frames: Frames, captions: Sequence[str]) -> Scores:
    """(255 - mean absolute error of every second frame against its prediction from the two neighbours) / 255.

    VBench predicts with the network AMT, which follows motion. The prediction here is the mean of the two neighbours,
    which does not follow motion: a fast object costs as much as a jerky one. Flicker, jumps and noise cost the same as
    in VBench.

    Raises:
      UserError: fewer than three frames.
    """
    del captions
    videos = _videos(frames, 3).astype(np.float32)
    before, between, after = videos[:, :-2:2], videos[:, 1:-1:2], videos[:, 2::2]
    return 1 - np.abs(between - (before + after) / 2).mean((1, 2, 3, 4), dtype=np.float64) / 255


def _videos(frames: Frames, needed: int) -> UInt8[np.ndarray, "b f h w 3"]:
    if frames.shape[1] < needed:
        raise UserError(
            f"at least {needed} frames are needed, not {frames.shape[1]}: set reward.frames = 0, or make longer videos"
        )
    return to_8_bits(frames)


def _speeds(video: UInt8[np.ndarray, "f h w 3"]) -> list[float]:
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pairs = itertools.pairwise(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video)
    speeds = (np.linalg.norm(flow.calc(first, second, None), axis=-1) for first, second in pairs)
    fastest = max(1, int(FASTEST * video[0, ..., 0].size))
    return [float(np.sort(speed, axis=None)[-fastest:].mean()) for speed in speeds]
