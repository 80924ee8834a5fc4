"""The clips of a report as files: a strip of all frames, or a film and a strip of a few frames for larger clips."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from dollar_jax import pictures
from dollar_jax.data.video import encode
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.reading import inside

PIXELATED = 64  # largest height of frames that are shown without loss, each pixel as a square
HEIGHT = 192  # largest height of other frames on the page, as in the paper
GRID = range(0, 121, 30)  # frames shown in the paper


class Look(NamedTuple):
    """Size of the videos, the same for all clips of a report.

    Attributes:
      frames: number of frames.
      height, width: height and width in pixels.
      fps: frames per second.
    """

    frames: int
    height: int
    width: int
    fps: float | int

    @property
    def small(self) -> bool:
        """Whether the page shows every frame without loss; else it shows a film and a grid."""
        return self.height <= PIXELATED

    @property
    def grid(self) -> list[int]:
        """Indices of the frames of a grid: those in the paper, or as many evenly spaced ones for a shorter video."""
        return list(GRID) if self.frames > GRID[-1] else pictures.evenly(self.frames, len(GRID)).tolist()


class Clip(NamedTuple):
    """A clip on the page.

    Attributes:
      moving: a PNG with all frames from left to right if the look is small, else an mp4.
      grid: a JPEG with the frames `Look.grid` from left to right; empty if the look is small.
    """

    moving: bytes
    grid: bytes


def make_clip(video: UInt8[np.ndarray, "f h w 3"], fps: float | int) -> Clip:
    """Encodes a video as a clip."""
    look = Look(*video.shape[:3], fps)
    if look.small:
        return Clip(pictures.strip(video), b"")
    reduced = pictures.shrink(video, HEIGHT)
    return Clip(_film(reduced, fps), pictures.strip(reduced[look.grid], "JPEG"))


def write_clips(folder: Path, clips: list[Clip]) -> None:
    """Writes clips to `folder/0.png`, .. if the look is small, else to `folder/0.mp4` and `folder/0.jpg`, .."""
    for i, clip in enumerate(clips):
        write_atomically(folder / f"{i}.{'mp4' if clip.grid else 'png'}", clip.moving)
        if clip.grid:
            write_atomically(folder / f"{i}.jpg", clip.grid)


def read_clips(folder: Path, count: int, small: bool) -> list[Clip]:
    """Reads clips that `write_clips` wrote.

    Raises:
      UserError: a file is missing, or is a link out of the folder, whose target the page would show.
    """
    if small:
        return [Clip(_read(folder, f"{i}.png"), b"") for i in range(count)]
    return [Clip(_read(folder, f"{i}.mp4"), _read(folder, f"{i}.jpg")) for i in range(count)]


def _read(folder: Path, name: str) -> bytes:
    path = inside(folder, name)
    if not path.is_file():
        raise UserError(f"{path} is missing: remove the report that it belongs to and run dollar_jax.main again")
    return path.read_bytes()


def data_url(data: bytes, kind: str) -> str:
    """A data URL with these bytes; `kind` is the media type, as in image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _film(frames: UInt8[np.ndarray, "f h w 3"], fps: float | int) -> bytes:
    """Encodes frames as H.264 in an mp4. The last row or column is dropped if odd: 4:2:0 needs even sizes."""
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    buffer = io.BytesIO()
    encode(buffer, frames, fps, 24)
    return buffer.getvalue()
