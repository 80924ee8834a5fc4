"""The features that the package vendi-score calls pixels."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dollar_jax.evaluate.features.pixels import pixels

SIZE = (32, 32)


def thumbnails(frames: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
    """Pixels of the frame resized to 32 x 32, from any shape: fine detail and noise do not count."""
    return pixels(np.stack([np.asarray(Image.fromarray(frame).resize(SIZE)) for frame in frames]))
