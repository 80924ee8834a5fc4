"""Pictures of small videos for people: enlarged, side by side, as strips of frames. All frames are uint8."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

FRAMES, HEIGHT = 4, 80  # of a montage: frames of a video, and about how many pixels high they are
INK, PAPER = (24, 28, 27), (255, 255, 255)


def to_8_bits(frames: Float[Array | np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Pixels in 0..1 as uint8, clipped."""
    return np.rint(np.clip(np.asarray(frames), 0, 1) * 255).astype(np.uint8)


def enlarge(frames: UInt8[np.ndarray, "*n h w 3"], height: int) -> UInt8[np.ndarray, "*n H W 3"]:
    """Repeats every pixel k times, k >= 1, so that the height is close to `height`; larger frames stay as they are."""
    times = max(1, round(height / frames.shape[-3]))
    return repeat(frames, "... h w c -> ... (h i) (w j) c", i=times, j=times)


def side_by_side(clips: UInt8[np.ndarray, "n f h w 3"]) -> UInt8[np.ndarray, "f h W 3"]:
    """Joins n clips from left to right into one clip, separated by two grey columns."""
    spaced = np.pad(clips, [(0, 0), (0, 0), (0, 0), (0, 2), (0, 0)], constant_values=128)
    return rearrange(spaced, "n f h w c -> f h (n w) c")


def gif(frames: UInt8[np.ndarray, "f h w 3"], fps: int) -> bytes:
    """The clip as a GIF that repeats endlessly."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def evenly(length: int, count: int) -> Int[np.ndarray, " k"]:
    """At most `count` evenly spaced indices below `length`, including the first and the last."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int)


def strip(frames: UInt8[np.ndarray, "f h w 3"], kind: str = "PNG") -> bytes:
    """All frames from left to right in one picture."""
    buffer = io.BytesIO()
    Image.fromarray(rearrange(frames, "f h w c -> h (f w) c")).save(buffer, kind, quality=82, optimize=True)
    return buffer.getvalue()


def shrink(frames: UInt8[np.ndarray, "f h w 3"], height: int) -> UInt8[np.ndarray, "f H W 3"]:
    """Frames reduced to `height`; smaller frames stay as they are."""
    if frames.shape[1] <= height:
        return frames
    size = (round(frames.shape[2] * height / frames.shape[1]), height)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def montage(clips: Mapping[str, UInt8[np.ndarray, "n f h w 3"]], captions: Sequence[str]) -> bytes:
    """A labelled PNG with a row for each model and a column for each prompt; each cell has `FRAMES` of a video.

    Args:
      clips: model -> n videos, one for each prompt.
      captions: the n prompts.
    """
    font = ImageFont.load_default(20)
    gap, margin, head = 3, 20, 44  # between frames, between videos, above the first row
    rows = {
        model: [shrink(enlarge(video[evenly(len(video), FRAMES)], HEIGHT), 2 * HEIGHT) for video in videos]
        for model, videos in clips.items()
    }
    count, tall, wide, _ = next(iter(rows.values()))[0].shape
    column = count * (wide + gap) + 2 * margin
    left = 2 * margin + round(max(font.getlength(model) for model in rows))
    picture = Image.new("RGB", (left + column * len(captions), head + len(rows) * (tall + margin)), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, caption in enumerate(captions):
        draw.text((left + i * column, head / 2), caption, INK, font, anchor="lm")
    for row, (model, videos) in enumerate(rows.items()):
        top = head + row * (tall + margin)
        draw.text((margin, top + tall / 2), model, INK, font, anchor="lm")
        for i, video in enumerate(videos):
            for k, frame in enumerate(video):
                picture.paste(Image.fromarray(frame), (left + i * column + k * (wide + gap), top))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
