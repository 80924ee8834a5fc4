"""Brightness of videos, a reward without a gradient."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float


def brightness(frames: Float[Array | np.ndarray, "b f h w 3"], captions: Sequence[str]) -> Float[np.ndarray, " b"]:
    """Median grey level of each video's 8-bit pixels, 0..1: a step function, with gradient zero almost everywhere."""
    del captions
    levels = np.round(np.asarray(frames).mean(-1) * 255)
    return (np.median(levels, axis=(1, 2, 3)) / 255).astype(np.float32)
