"""Videos and images of strangers: only the file itself is read, in the formats that are known, at sizes that fit."""

import os
import socket
import struct

import av
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from dollar_jax.data.video import read_clip, read_video, write_video
from dollar_jax.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with videos that nothing handed over may lead to."""
    monkeypatch.chdir(tmp_path)
    write_video("secret.mp4", FRAMES, fps=8)
    encode("secret.ts", "mpeg2video")
    return tmp_path


def encode(path, codec):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "rgb8" if codec == "gif" else "yuv420p"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def refused(path, reason=""):
    for read in (read_video, lambda path: read_clip(path, 2, 32, 32, 8)):
        with pytest.raises(UserError, match=rf"cannot be decoded \({reason}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.m3u8", PLAYLIST),
        ("a.mp4", "ffconcat version 1.0\nfile secret.mp4\n"),
        ("a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"),
        ("a.mpd", '<?xml version="1.0"?><MPD><Period><BaseURL>secret.mp4</BaseURL></Period></MPD>'),
    ],
)
def test_lists_of_other_files(folder, name, content):
    (folder / name).write_text(content)
    refused(name)


@pytest.mark.parametrize("name", ["concat:secret.ts", "subfile,,start,0,end,0,,:secret.ts", "async:secret.ts"])
def test_names_that_lead_to_other_files(folder, name):
    """There is no such file: nothing else is read in its place."""
    for read in (read_video, lambda path: read_clip(path, 2, 32, 32, 8)):
        with pytest.raises(UserError, match="no such file"):
            read(name)


@pytest.mark.parametrize("pattern", ["http:127.0.0.1:{}/a.mp4", "http:127.0.0.1:{}", "tcp:127.0.0.1:{}"])
def test_names_that_are_addresses(folder, pattern):
    """They are names: the file is read, and nobody is asked for it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = pattern.format(server.getsockname()[1])
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        os.rename("secret.mp4", name)
        assert read_video(name)[0].shape == FRAMES.shape
        assert read_clip(name, 2, 32, 32, 8).shape == (2, 32, 32, 3)
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_patterns_of_names(folder):
    """FFmpeg would take %02d for a sequence of images."""
    for index in range(3):
        Image.fromarray(FRAMES[index]).save(f"{index:02d}.tiff")
    refused("%02d.tiff")
    os.rename("secret.mp4", "%02d.mp4")
    assert read_video("%02d.mp4")[0].shape == FRAMES.shape


def box(kind, *content):
    content = b"".join(content)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def alias(path):
    """QuickTime's reference to another file, as FFmpeg reads it: entry 2 is the absolute path."""
    record = bytes(10) + b"\0" + bytes(27) + bytes(12) + b"\0" + bytes(63) + bytes(16 + 2 + 2 + 16)
    path = path.encode() + b"\0" * (len(path) % 2)
    return box(b"alis", bytes(4), record, struct.pack(">hH", 2, len(path)), path, struct.pack(">hH", -1, 0))


def replace_in(content, path, new):
    """The same boxes, the one at this path replaced."""
    result, place = b"", 0
    while place < len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        whole = content[place : place + size]
        if kind == path[0]:
            whole = new if len(path) == 1 else box(kind, replace_in(whole[8:], path[1:], new))
        result, place = result + whole, place + size
    return result


def test_references_of_quicktime(folder):
    encode("a.mov", "mpeg4")
    content = (folder / "a.mov").read_bytes()
    os.rename("a.mov", "secret.mov")
    references = box(b"dref", bytes(4), struct.pack(">I", 1), alias(str(folder / "secret.mov")))
    content = replace_in(content, [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"], references)
    start = content.index(b"mdat") + 4
    size = struct.unpack_from(">I", content, start - 8)[0] - 8
    (folder / "a.mov").write_bytes(content[:start] + bytes(size) + content[start + size :])
    careless = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open("a.mov", options=careless) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    refused("a.mov")


@pytest.mark.parametrize("kind", ["PPM", "TIFF", "GIF", "TGA", "EPS"])
def test_images_of_other_formats(folder, kind, monkeypatch):
    """Pillow would read each whatever its name is, EPS by a program."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **_: started.append(arguments))
    Image.fromarray(FRAMES[0]).save("a.png", format=kind)
    with pytest.raises(UserError, match=r"a\.png: cannot be decoded"):
        read_clip("a.png", 1, 32, 32, 8)
    assert not started


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_images_under_each_others_names(folder, kind):
    Image.fromarray(FRAMES[0]).save("a.png", format=kind)
    assert read_clip("a.png", 1, 32, 32, 8).shape == (1, 32, 32, 3)


def test_too_large_images(folder):
    Image.new("1", (12_000, 12_000)).save("a.png")
    with pytest.raises(UserError, match=r"a\.png: cannot be decoded \(Image size \(144000000 pixels\)"):
        read_clip("a.png", 1, 32, 32, 8)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_too_large_videos(folder, side):
    encode("a.gif", "gif")
    content = bytearray((folder / "a.gif").read_bytes())
    struct.pack_into("<HH", content, 6, side, side)
    (folder / "a.gif").write_bytes(content)
    refused("a.gif", "its frames have no size, or more than 89,478,485 pixels")


def test_many_frames(folder, monkeypatch):
    """Frames without change take no room in a file."""
    monkeypatch.setattr("dollar_jax.data.video.BUDGET", 11 * 32 * 32, raising=False)
    with pytest.raises(UserError, match=r"more than 11,264 pixels together"):
        read_video("secret.mp4")


def test_a_video_is_not_written_through_a_link(folder):
    """Of a name that a stranger could foresee."""
    (folder / "mine").write_text("mine")
    os.symlink("mine", f".a.mp4.{os.getpid()}")
    write_video("a.mp4", FRAMES, fps=8)
    assert (folder / "mine").read_text() == "mine"
    assert read_video("a.mp4")[0].shape == FRAMES.shape


def test_frames_that_grow(folder, monkeypatch):
    """The header says 32 x 32, a later frame more."""
    monkeypatch.setattr("dollar_jax.data.video.PIXELS", 32 * 32, raising=False)
    with av.open("a.avi", "w") as container:
        small, large = (container.add_stream("mjpeg", rate=8) for _ in range(2))
        for stream, side in ((small, 32), (large, 64)):
            stream.height, stream.width, stream.pix_fmt = side, side, "yuvj420p"
        packets = []
        for stream, side in ((small, 32), (large, 64)):
            frame = av.VideoFrame(side, side, "yuvj420p")
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            packets += list(stream.encode(frame)) + list(stream.encode())
        for number, packet in enumerate([packets[0], packets[-1]]):
            packet.stream, packet.pts, packet.dts = small, number, number
            container.mux(packet)
    refused("a.avi")
