"""JPEG file size of frames, as rewards without a gradient; from DDPO (arXiv 2305.13301)."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from einops import rearrange
from jaxtyping import Array, Float
from PIL import Image

from dollar_jax.pictures import to_8_bits

Frames = Float[Array | np.ndarray, "b f h w 3"]  # pixel videos, 0..1
Scores = Float[np.ndarray, "b"]


def jpeg_compressibility(frames: Frames, captions: Sequence[str], quality: int = 95) -> Scores:
    """Minus the size of a frame as a JPEG file of this quality, in kilobytes (1000 bytes); the mean over frames.

    Values outside 0..1 are clipped. The captions are not used.
    """
    images = to_8_bits(frames)
    with ThreadPoolExecutor() as pool:  # Pillow encodes without Python's lock
        sizes = pool.map(partial(_kilobytes, quality=quality), rearrange(images, "b f h w c -> (b f) h w c"))
        return -rearrange(np.fromiter(sizes, float), "(b f) -> b f", b=len(images)).mean(1)


def jpeg_incompressibility(frames: Frames, captions: Sequence[str], quality: int = 95) -> Scores:
    """Size of a frame as a JPEG file in kilobytes: `jpeg_compressibility` with the other sign."""
    return -jpeg_compressibility(frames, captions, quality)


def _kilobytes(image: np.ndarray, quality: int) -> float:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.tell() / 1000
