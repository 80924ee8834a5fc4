"""How well the frames of a video compress: a reward without a gradient, as in DDPO (arXiv 2305.13301)."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Array, Float


def jpeg_compressibility(
    frames: Float[Array | np.ndarray, "b f h w 3"], captions: Sequence[str]
) -> Float[np.ndarray, "b"]:
    """Minus the kilobytes (1000 bytes) of a frame as a JPEG file of quality 95, averaged over the video's frames.

    Args:
      frames: 0..1; what lies outside is clipped.
      captions: not looked at; every reward takes them.
    """
    from PIL import Image

    def kilobytes(image: np.ndarray) -> float:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        return file.tell() / 1000

    images = np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow compresses outside the interpreter lock
        sizes = list(pool.map(kilobytes, images.reshape(-1, *images.shape[2:])))
    return -np.reshape(sizes, images.shape[:2]).mean(1)


def jpeg_incompressibility(
    frames: Float[Array | np.ndarray, "b f h w 3"], captions: Sequence[str]
) -> Float[np.ndarray, "b"]:
    """Kilobytes of a frame as a JPEG file: see `jpeg_compressibility`."""
    return -jpeg_compressibility(frames, captions)
