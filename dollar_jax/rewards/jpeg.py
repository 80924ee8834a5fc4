"""How well the frames of a video compress: rewards without a gradient, as in DDPO (arXiv 2305.13301)."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float
from PIL import Image

Frames = Float[Array | np.ndarray, "b f h w 3"]  # pixel videos, 0..1
Scores = Float[np.ndarray, "b"]


def jpeg_compressibility(frames: Frames, captions: Sequence[str]) -> Scores:
    """Minus the kilobytes (1000 bytes) of a frame as a JPEG file of quality 95, mean over the frames of each video.

    Values outside 0..1 are clipped. Captions are not looked at: every reward takes them.
    """
    images = np.rint(np.clip(np.asarray(frames), 0, 1) * 255).astype(np.uint8)
    return -np.array([np.mean([_kilobytes(image) for image in video]) for video in images])


def jpeg_incompressibility(frames: Frames, captions: Sequence[str]) -> Scores:
    """Kilobytes of a frame as a JPEG file: `jpeg_compressibility` with the other sign."""
    return -jpeg_compressibility(frames, captions)


def _kilobytes(image: np.ndarray) -> float:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.tell() / 1000
