"""The features of the paper's Vendi (Pixel)."""

import numpy as np
from einops import rearrange
from jaxtyping import Float, Real


def pixels(frames: Real[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
    """The pixels of each frame as a vector."""
    return rearrange(frames, "n h w c -> n (h w c)").astype(np.float64)
