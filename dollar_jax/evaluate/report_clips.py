"""The clips of a report as files that its page can hold: strips of all frames, or for larger clips films and grids."""

import base64
import io
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from dollar_jax import pictures
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.reading import inside

PIXELATED = 64  # frames up to this height are shown as they are, every pixel a square
HEIGHT = 192  # of larger ones on the page, at most: the paper's
GRID = range(0, 121, 30)  # the frames that the paper shows


class Look(NamedTuple):
    """What all clips of a report have in common.

    Attributes:
      frames: of the video.
      height, width: of the video, pixels.
      fps: frames a second.
    """

    frames: int
    height: int
    width: int
    fps: float | int

    @property
    def small(self) -> bool:
        """Whether every frame is on the page, each pixel a square; else there are a film and a grid."""
        return self.height <= PIXELATED

    @property
    def grid(self) -> list[int]:
        """Which frames a grid shows: those of the paper where the video is long enough, else as many of it."""
        return list(GRID) if self.frames > GRID[-1] else pictures.evenly(self.frames, len(GRID)).tolist()


class Clip(NamedTuple):
    """A clip on the page.

    Attributes:
      moving: a PNG of all frames from left to right if the look is small, else an mp4.
      grid: a JPEG of the frames `Look.grid` from left to right; empty if the look is small.
    """

    moving: bytes
    grid: bytes


def make_clip(video: UInt8[np.ndarray, "f h w 3"], fps: float | int) -> Clip:
    """The clip of a video."""
    look = Look(*video.shape[:3], fps)
    if look.small:
        return Clip(pictures.strip(video), b"")
    reduced = pictures.shrink(video, HEIGHT)
    return Clip(_film(reduced, fps), pictures.strip(reduced[look.grid], "JPEG"))


def write_clips(folder: Path, clips: list[Clip]) -> None:
    """`folder/0.png`, ... or `folder/0.mp4` and `folder/0.jpg`, ..."""
    for i, clip in enumerate(clips):
        write_atomically(folder / f"{i}.{'mp4' if clip.grid else 'png'}", clip.moving)
        if clip.grid:
            write_atomically(folder / f"{i}.jpg", clip.grid)


def read_clips(folder: Path, count: int, small: bool) -> list[Clip]:
    """What `write_clips` wrote.

    Raises:
      UserError: a file is missing, or a link leads out of the folder: the page would show what lies there.
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
    """The bytes as an address that needs no network; `kind` as in image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _film(frames: UInt8[np.ndarray, "f h w 3"], fps: float | int) -> bytes:
    """H.264 of a quality for looking at; an odd row or column at the edge is left out, which 4:2:0 does not have."""
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1001), options={"crf": "24"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
