import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.data.video import read_clip, read_video, write_video
from dollar_jax.errors import UserError

GREYS = np.arange(10, 250, 20, dtype=np.uint8)  # twelve frames told apart by their grey


def plain(greys, height=32, width=32):
    return np.broadcast_to(np.asarray(greys, np.uint8)[:, None, None, None], (len(greys), height, width, 3)).copy()


def encode(path, frames, codec, times):
    """Writes frames at the given times, in milliseconds, by PyAV alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for frame, time in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def shown(clip):
    """The grey of each frame, as an index into GREYS."""
    return np.abs(clip.mean((1, 2, 3))[:, None] - GREYS.astype(float)).argmin(1).tolist()


def psnr(a, b):
    return -10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2))


def test_shapes_survive_a_file(tmp_path):
    video = ShapesWorld(1, seed=0)[0]["video"]
    write_video(tmp_path / "a.mp4", video, fps=8)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert fps == 8
    assert frames.shape == video.shape
    assert psnr(frames, video) > 25  # colour has half the resolution
    assert psnr(frames.mean(-1), video.mean(-1)) > 30
    np.testing.assert_array_equal(read_clip(tmp_path / "a.mp4", 9, 32, 32, 8), frames)


def test_written_files_are_h264_at_their_rate(tmp_path):
    write_video(tmp_path / "a.mp4", plain(GREYS, 48, 64), fps=29.97)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width, stream.frames) == (48, 64, 12)
        assert stream.average_rate == Fraction(2997, 100)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, plain(GREYS), fps=8)
    before = path.read_bytes()
    calls = iter(range(80))  # x264 writes nothing before it has seen a few dozen frames
    original = av.VideoFrame.from_ndarray
    monkeypatch.setattr("dollar_jax.data.video.av.VideoFrame", Failing(original, calls))
    with pytest.raises(StopIteration):
        write_video(path, plain(GREYS).repeat(10, 0), fps=8)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


class Failing:
    """Stands for av.VideoFrame; fails when `calls` end."""

    def __init__(self, original, calls):
        self.original, self.calls = original, calls

    def from_ndarray(self, *args, **kwargs):
        next(self.calls)
        return self.original(*args, **kwargs)


def test_odd_sizes_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="even height and width, not 31 x 32"):
        write_video(tmp_path / "a.mp4", plain(GREYS, 31, 32), fps=8)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.mkv", "ffv1"), ("a.gif", "gif")]
)
def test_every_container_is_read(tmp_path, name, codec):
    encode(tmp_path / name, plain(GREYS), codec, range(0, 1200, 100))
    assert shown(read_clip(tmp_path / name, 12, 32, 32, 10)) == list(range(12))


@pytest.mark.parametrize(
    ("fps", "frames", "expected"),
    [
        (10, 12, list(range(12))),
        (5, 6, [0, 2, 4, 6, 8, 10]),
        (4, 5, [0, 2, 5, 7, 10]),  # at 0, 250, 500, 750 and 1000 ms; the earlier one of two as near
        (20, 5, [0, 0, 1, 1, 2]),
    ],
)
def test_the_nearest_frame_in_time(tmp_path, fps, frames, expected):
    encode(tmp_path / "a.mkv", plain(GREYS), "ffv1", range(0, 1200, 100))
    assert shown(read_clip(tmp_path / "a.mkv", frames, 32, 32, fps)) == expected


def test_uneven_frame_times_and_a_late_start(tmp_path):
    times = [500, 520, 540, 900, 1000, 1500]
    encode(tmp_path / "a.mkv", plain(GREYS[:6]), "ffv1", times)
    assert shown(read_clip(tmp_path / "a.mkv", 11, 32, 32, 10)) == [0, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5]


def test_too_short_videos_are_refused(tmp_path):
    encode(tmp_path / "a.mkv", plain(GREYS[:9]), "ffv1", range(0, 900, 100))
    with pytest.raises(UserError, match=r"a.mkv: too short, 9 of 10 frames at 10 fps"):
        read_clip(tmp_path / "a.mkv", 10, 32, 32, 10)


def test_frames_cover_the_size_and_are_cropped_in_the_middle(tmp_path):
    frames = plain([100], 40, 120)
    frames[:, :, :20] = frames[:, :, 100:] = 250  # off the middle 80 columns
    encode(tmp_path / "a.mkv", frames, "ffv1", [0])
    wide = read_clip(tmp_path / "a.mkv", 1, 20, 40, 10)
    assert wide.shape == (1, 20, 40, 3)
    assert np.abs(wide.astype(int) - 100).max() <= 12  # the filter sees a little past the crop
    tall = read_clip(tmp_path / "a.mkv", 1, 20, 60, 10)
    assert tall[0, :, :8].min() > 240 < tall[0, :, -8:].min()


def test_reducing_does_not_alias(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "a.png")
    reduced = read_clip(tmp_path / "a.png", 1, 16, 16, 8)
    assert np.abs(reduced.astype(int) - 100).max() <= 8


def test_images_are_videos_of_one_frame(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_clip(tmp_path / "a.png", 9, 32, 48, 8), image[None])
    Image.fromarray(image).convert("RGBA").save(tmp_path / "b.PNG")
    np.testing.assert_array_equal(read_clip(tmp_path / "b.PNG", 9, 32, 48, 8), image[None])


def test_images_stand_upright(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.png", 1, 48, 32, 8)[0], np.rot90(image, -1))


def test_phone_videos_stand_upright(tmp_path):
    frames = plain([50], 32, 64)
    frames[:, :, :16] = 220
    write_video(tmp_path / "a.mp4", frames, fps=8)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO 14496-12: the track's 3 x 3 matrix; here a quarter turn clockwise
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)
    (turned,), _ = read_video(tmp_path / "a.mp4")
    assert turned.shape == (64, 32, 3)
    assert turned[:12].min() > 200
    assert turned[20:].max() < 70


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png", "a.jpg"])
def test_what_cannot_be_decoded_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(UserError, match=rf"{name}: no such file"):
        read_clip(path, 1, 32, 32, 8)
    for content in (b"", b"not a video" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: cannot be decoded") as caught:
            read_clip(path, 1, 32, 32, 8)
        assert "\n" not in str(caught.value)


def test_truncated_files_are_refused(tmp_path):
    write_video(tmp_path / "a.mp4", plain(GREYS), fps=8)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    for name in ("a.mp4", "a.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 3])
        with pytest.raises(UserError, match=name):
            read_clip(tmp_path / name, 12, 32, 32, 8)


def test_sound_without_pictures(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="it has no video"):
        read_clip(tmp_path / "a.mp4", 1, 32, 32, 8)
    with pytest.raises(UserError, match="it has no video"):
        read_video(tmp_path / "a.mp4")
