"""How much videos move, flicker and jerk: VBench's measures (arXiv 2311.17982) without its networks.

All see the 8-bit pixels, and no captions.
"""

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Array, Float, Float64, UInt8

from dollar_jax.errors import UserError

Frames = Float[Array | np.ndarray, "b f h w 3"]  # pixel videos, 0..1
Scores = Float64[np.ndarray, " b"]

FASTEST = 0.05  # the share of pixels that dynamic degree looks at


def dynamic_degree(frames: Frames, captions: Sequence[str]) -> Scores:
    """The mean speed of the fastest 5 % of pixels, in pixels a frame, mean over pairs of neighbouring frames.

    The optical flow is that of OpenCV's dense inverse search (arXiv 1603.03590) between grey images, where VBench has
    the network RAFT: expect other numbers. Of a video at 8 frames a second VBench then keeps only whether a quarter of
    the pairs exceed 6 pixels for every 256 of the shorter side.

    Raises:
      UserError: a single frame.
    """
    del captions
    return np.array([np.mean(_speeds(video)) for video in _to_8_bits(frames, 2)])


def temporal_flickering(frames: Frames, captions: Sequence[str]) -> Scores:
    """(255 - mean absolute difference of neighbouring frames) / 255, as VBench's: 1 where nothing changes. VBench asks
    it of still scenes alone, since all that moves lowers it.

    Raises:
      UserError: a single frame.
    """
    del captions
    videos = _to_8_bits(frames, 2).astype(np.float32)
    return 1 - np.abs(np.diff(videos, axis=1)).mean((1, 2, 3, 4), dtype=np.float64) / 255


def motion_smoothness(frames: Frames, captions: Sequence[str]) -> Scores:
    """(255 - mean absolute error of every second frame against what its neighbours predict) / 255.

    VBench lets the network AMT predict, which follows motion; here it is the mean of the two neighbours, which does
    not: a fast object costs as much as a jerky one, while flicker, jumps and noise cost the same as there.

    Raises:
      UserError: fewer than three frames.
    """
    del captions
    videos = _to_8_bits(frames, 3).astype(np.float32)
    before, between, after = videos[:, :-2:2], videos[:, 1:-1:2], videos[:, 2::2]
    return 1 - np.abs(between - (before + after) / 2).mean((1, 2, 3, 4), dtype=np.float64) / 255


def _to_8_bits(frames: Frames, needed: int) -> UInt8[np.ndarray, "b f h w 3"]:
    if frames.shape[1] < needed:
        raise UserError(
            f"it needs {needed} frames, not {frames.shape[1]}: set reward.frames = 0, or make longer videos"
        )
    return np.rint(np.clip(np.asarray(frames), 0, 1) * 255).astype(np.uint8)


def _speeds(video: UInt8[np.ndarray, "f h w 3"]) -> list[float]:
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pairs = itertools.pairwise(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video)
    speeds = (np.linalg.norm(flow.calc(first, second, None), axis=-1) for first, second in pairs)
    fastest = max(1, int(FASTEST * video[0, ..., 0].size))
    return [float(np.sort(speed, axis=None)[-fastest:].mean()) for speed in speeds]
