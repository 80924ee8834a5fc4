"""Small videos as pictures that people can look at: enlarged, tiled, encoded. Frames are uint8, [f h w 3] a clip."""

import io

import numpy as np
from einops import rearrange, repeat
from jaxtyping import UInt8
from PIL import Image


def enlarge(frames: UInt8[np.ndarray, "*n h w 3"], height: int) -> UInt8[np.ndarray, "*n H W 3"]:
    """Repeats every pixel a whole number of times, so that the height comes near `height`; large frames stay."""
    times = max(1, round(height / frames.shape[-3]))
    return repeat(frames, "... h w c -> ... (h i) (w j) c", i=times, j=times)


def side_by_side(clips: UInt8[np.ndarray, "n f h w 3"]) -> UInt8[np.ndarray, "f h W 3"]:
    """One clip of n clips in a row, two grey columns apart."""
    spaced = np.pad(clips, [(0, 0), (0, 0), (0, 0), (0, 2), (0, 0)], constant_values=128)
    return rearrange(spaced, "n f h w c -> f h (n w) c")


def gif(frames: UInt8[np.ndarray, "f h w 3"], fps: int) -> bytes:
    """The clip as a GIF that repeats for ever."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return buffer.getvalue()
