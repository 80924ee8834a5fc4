import json
import os

import numpy as np
import pytest
from PIL import Image

from dollar_jax.data.clips import open_clips, read_captions
from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.data.video import read_clip, write_video
from dollar_jax.errors import UserError

SIZE = {"frames": 9, "height": 32, "width": 32, "fps": 8}


@pytest.fixture
def folder(tmp_path):
    """Two videos, an image between them, and a file that is neither."""
    for index, clip in enumerate(ShapesWorld(2, seed=0)):
        write_video(tmp_path / f"{index}.mp4", clip["video"], fps=8)
    Image.fromarray(ShapesWorld(3, seed=0)[2]["video"][0]).save(tmp_path / "2.png")
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    return tmp_path


def captions(folder, *lines):
    path = folder / "captions.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return read_captions(path, folder)


def record(name):
    return {"file": name, "caption": f"caption of {name}"}


def test_captions_are_read_in_order(folder):
    records = captions(
        folder, record("1.mp4"), "", record("2.png") | {"more": 1}, {"file": "0.mp4", "caption": "größer"}
    )
    assert records == [
        (folder / "1.mp4", "caption of 1.mp4"),
        (folder / "2.png", "caption of 2.png"),
        (folder / "0.mp4", "größer"),
    ]


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([record("0.mp4"), '{"file": '], "line 2 is not JSON"),
        ([record("0.mp4"), "", {"file": "1.mp4"}], 'line 3: give {"file": "...", "caption": "..."}, both'),
        ([{"file": "0.mp4", "caption": 5}], "line 1: give"),
        (["[1, 2]"], "line 1: give"),
        ([record("0.mp4"), record("9.mp4")], "line 2: there is no file"),
        ([record("")], "line 1: there is no file"),
        ([{"file": "../outside.mp4", "caption": ""}], "line 1: .* points to '../outside.mp4', outside itself"),
        ([record("0.mp4"), record("/etc/passwd")], "line 2: .* points to '/etc/passwd', outside itself"),
        ([record("folder/../../outside.mp4")], "line 1: .* outside itself"),
        ([record("link.mp4")], "line 1: .* points to 'link.mp4', outside itself"),
        ([record("0.mp4\0")], "line 1: the file's name has control characters"),
        ([record("a\n\x1b[2J.mp4")], "line 1: the file's name has control characters"),
        ([record("\ud800.mp4")], "line 1: .* which is not a valid path"),
        ([record("a" * 5000)], "line 1: .* which is not a valid path"),
        ([record("loop.mp4")], "line 1: .* which is not a valid path"),
        ([record("pipe.mp4")], "line 1: there is no file"),
        (
            [record("0.mp4") | {"caption": "half \ud800 a pair"}],
            "line 1: file or caption is not valid text: surrogates",
        ),
        (["[" * 100_000], "line 1 is not JSON"),
        (['{"file": ' + "9" * 5000 + "}"], "line 1 is not JSON"),
        (["", " "], "names no videos"),
    ],
)
def test_wrong_captions_are_named(folder, lines, fault):
    (folder.parent / "outside.mp4").touch()
    (folder / "link.mp4").symlink_to(folder.parent / "outside.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    os.mkfifo(folder / "pipe.mp4")  # opening it would never end
    with pytest.raises(UserError, match=fault) as caught:
        captions(folder, *lines)
    assert "\n" not in str(caught.value)


def test_lines_end_at_line_feeds_alone(folder):
    """With or without a byte order mark; editors and other systems write the rest."""
    caption = "one\u2028two\x0bthree\x85four"
    lines = [json.dumps(record("0.mp4") | {"caption": caption}, ensure_ascii=False), json.dumps(record("1.mp4"))]
    (folder / "captions.jsonl").write_bytes("\r\n".join(lines).replace("\\u000b", "\x0b").encode("utf-8-sig"))
    with pytest.raises(UserError, match="line 1 is not JSON: Invalid control character"):
        read_captions(folder / "captions.jsonl", folder)
    (folder / "captions.jsonl").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert read_captions(folder / "captions.jsonl", folder) == [
        (folder / "0.mp4", caption),
        (folder / "1.mp4", "caption of 1.mp4"),
    ]


def test_links_that_stay_inside_keep_their_names(folder):
    """Videos as the cache of the Hub has them: an image is one by the name of the link."""
    blobs, snapshot = folder / "datasets--x" / "blobs", folder / "datasets--x" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    (snapshot / "more").mkdir(parents=True)
    (folder / "2.png").rename(blobs / "c3f0")
    (snapshot / "more" / "2.png").symlink_to("../../../blobs/c3f0")
    (folder / "captions.jsonl").write_text(json.dumps(record("more/2.png")))
    records = read_captions(folder / "captions.jsonl", snapshot)
    assert open_clips(records, snapshot, SIZE, skip_bad=False)[0]["video"].shape == (1, 32, 32, 3)


def test_no_captions(folder):
    with pytest.raises(UserError, match=r"none.jsonl: No such file"):
        read_captions(folder / "none.jsonl", folder)
    with pytest.raises(UserError, match=r"2.png is not UTF-8 text"):
        read_captions(folder / "2.png", folder)


def test_videos_come_first(folder):
    source = open_clips(captions(folder, *map(record, ("1.mp4", "./2.png", "0.mp4"))), folder, SIZE, skip_bad=False)
    assert [len(part) for part in source.parts] == [2, 1]
    assert [clip["caption"] for clip in source] == [f"caption of {name}" for name in ("1.mp4", "0.mp4", "./2.png")]
    assert [clip["file"] for clip in source] == ["1.mp4", "0.mp4", "2.png"]
    for clip, name in zip(source, ("1.mp4", "0.mp4", "2.png"), strict=True):
        np.testing.assert_array_equal(clip["video"], read_clip(folder / name, **SIZE))
    assert source[2]["video"].shape == (1, 32, 32, 3)


def test_bad_files_stop_or_are_left_out(folder, capsys):
    records = captions(folder, record("0.mp4"), record("bad.mp4"))
    with pytest.raises(UserError, match=r"bad.mp4: cannot be decoded .*; --skip_bad leaves out all such files"):
        open_clips(records, folder, SIZE, skip_bad=False)[1]
    source = open_clips(records, folder, SIZE, skip_bad=True)
    assert source[0] is not None
    assert source[1] is None
    assert "left out" in capsys.readouterr().err
    long = open_clips(records, folder, SIZE | {"frames": 10}, skip_bad=True)
    assert long[0] is None
    assert "0.mp4: too short" in capsys.readouterr().err
