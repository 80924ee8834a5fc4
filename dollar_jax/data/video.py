"""Reads video files and images, resampled to a number of frames, a frame rate and a size, and writes videos.

Files may come from outside. FFmpeg and Pillow choose a decoder by a file's content, and some decoders open other files,
use the network or run programs. So only the formats below are decoded, and only from the file itself.
"""

import itertools
import os
import secrets
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dollar_jax.errors import UserError, first_line

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
PIXELS = Image.MAX_IMAGE_PIXELS  # larger frames could fill the memory
BUDGET = 10**9  # pixels of a video that is read as a whole, 3 GB
OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg,asf",
    "protocol_whitelist": "file",
    "enable_drefs": "0",  # references to other files in QuickTime
    "use_absolute_path": "0",
    "max_pixels": str(PIXELS),
}
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # Pillow's own error comes at twice as many

Frames = UInt8[np.ndarray, "f h w 3"]


def is_image(path: str | os.PathLike) -> bool:
    """Whether the file is a still image by its extension. A GIF is a video."""
    return Path(path).suffix.lower() in IMAGES


def read_clip(path: str | os.PathLike, frames: int, height: int, width: int, fps: float | int) -> Frames:
    """Reads the first `frames` frames of a file at `fps`, scaled to cover height x width and cropped around the middle.

    For each time, the file's nearest frame is taken. An image becomes a video of one frame, whatever `frames` is.

    Raises:
      UserError: the file is missing, cannot be decoded, or is too short.
    """
    if is_image(path):
        with _decoding(path), Image.open(path, formats=IMAGE_FORMATS) as image:
            return _cover(ImageOps.exif_transpose(image).convert("RGB"), height, width)[None]
    clip = []
    with _decoding(path):
        for frame in _resample(_decode(path), (index / fps for index in range(frames))):
            clip.append(_cover(Image.fromarray(_rgb(frame)), height, width))
    if len(clip) < frames:
        raise UserError(
            f"{path}: too short, {len(clip)} of {frames} frames at {fps:g} fps; leave it out, or take fewer frames"
        )
    return np.stack(clip)


def read_video(path: str | os.PathLike) -> tuple[Frames, float]:
    """Reads all frames of a video unchanged. Returns (frames, mean frame rate in frames per second).

    Raises:
      UserError: the file is missing, cannot be decoded, or has more than `BUDGET` pixels.
    """
    frames, pixels = [], 0
    with _decoding(path):
        for frame in _decode(path):
            pixels += frame.width * frame.height
            if pixels > BUDGET:
                raise ValueError(f"its frames have more than {BUDGET:,} pixels together")
            frames.append(_rgb(frame))
        frames = np.stack(frames)
        with _open(path) as container:
            return frames, float(container.streams.video[0].average_rate)


def write_video(path: str | os.PathLike, frames: Frames, fps: float | int) -> None:
    """Writes an mp4 file (H.264, 4:2:0, nearly lossless in luma), which appears only when it is complete.

    Raises:
      UserError: the height or width is odd, which 4:2:0 does not allow.
    """
    path = Path(path)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(f"{path}: H.264 needs an even height and width, not {height} x {width}")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(3)}")  # a name that no stranger's link has; short
    try:
        encode(os.fspath(temporary), frames, fps, 12)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encode(file: str | BytesIO, frames: Frames, fps: float | int, crf: int) -> None:
    """Writes frames of even height and width to `file` as H.264 (4:2:0) in an mp4.

    Args:
      crf: x264's constant rate factor: 0 is lossless, 51 the smallest file.
    """
    # A player may begin before it has the whole file. FFmpeg opens the file again for this, so it must have a name.
    options = {"movflags": "faststart"} if isinstance(file, str) else {}
    with av.open(file, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1001), options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def _decoding(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors of the decoders into a UserError of one line about the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # on damaged files, each decoder raises its own exceptions
        reason = first_line(getattr(error, "strerror", None) or error)
        raise UserError(f"{path}: cannot be decoded ({reason}); convert it, or leave it out") from error


def _open(path: str | os.PathLike) -> av.container.InputContainer:
    # The prefix file: keeps FFmpeg from reading a file name such as http:HOST or concat:FILE as a URL.
    return av.open(f"file:{os.path.abspath(path)}", options=OPTIONS)


def _decode(path: str | os.PathLike) -> Iterator[av.VideoFrame]:
    with _open(path) as container:
        if not container.streams.video:
            raise ValueError("it has no video")
        codec = container.streams.video[0].codec_context
        if codec is None:
            raise ValueError("its codec is not known")
        if not 0 < codec.width * codec.height <= PIXELS:
            raise ValueError(f"its frames have no size, or more than {PIXELS:,} pixels")
        codec.options = {"max_pixels": str(PIXELS)}  # later frames may be larger
        empty = True
        for frame in container.decode(video=0):
            if frame.time is None:
                raise ValueError("its frames have no time stamps")
            yield frame
            empty = False
        if empty:
            raise ValueError("it has no frames")


def _resample(frames: Iterator[av.VideoFrame], times: Iterable[float]) -> Iterator[av.VideoFrame]:
    """The frame nearest to each of the ascending times (seconds after the first frame), until the end of the video."""
    pending = deque(times)
    first = last = next(frames)
    gap = 0.0
    for frame in itertools.chain(frames, [None]):
        gap = frame.time - last.time if frame else gap
        while pending and pending[0] <= last.time - first.time + gap / 2:
            pending.popleft()
            yield last
        if not pending:
            return
        last = frame


def _rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of a frame, rotated as the file specifies: phones store videos sideways."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def _cover(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
