import json

import numpy as np
import pytest
from PIL import Image

from dollar_jax.data.clips import open_clips, read_captions
from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.data.video import read_clip, write_video
from dollar_jax.importing import UserError

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
        ([record("0.mp4"), "", {"file": "1.mp4"}], 'line 3: give {"file": "...", "caption": "..."}'),
        ([{"file": "0.mp4", "caption": 5}], "line 1: give"),
        (["[1, 2]"], "line 1: give"),
        ([record("0.mp4"), record("9.mp4")], "line 2: there is no file"),
        ([record("")], "line 1: there is no file"),
        (["", " "], "names no videos"),
    ],
)
def test_wrong_captions_are_named(folder, lines, fault):
    with pytest.raises(UserError) as caught:
        captions(folder, *lines)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_captions(folder):
    with pytest.raises(UserError, match=r"none.jsonl: No such file"):
        read_captions(folder / "none.jsonl", folder)
    with pytest.raises(UserError, match=r"2.png is not UTF-8 text"):
        read_captions(folder / "2.png", folder)


def test_videos_come_first(folder):
    source = open_clips(captions(folder, record("1.mp4"), record("2.png"), record("0.mp4")), SIZE, skip_bad=False)
    assert [len(part) for part in source.parts] == [2, 1]
    assert [clip["caption"] for clip in source] == [f"caption of {name}" for name in ("1.mp4", "0.mp4", "2.png")]
    for clip, name in zip(source, ("1.mp4", "0.mp4", "2.png"), strict=True):
        np.testing.assert_array_equal(clip["video"], read_clip(folder / name, **SIZE))
    assert source[2]["video"].shape == (1, 32, 32, 3)


def test_bad_files_stop_or_are_left_out(folder, capsys):
    records = captions(folder, record("0.mp4"), record("bad.mp4"))
    with pytest.raises(UserError, match=r"bad.mp4: cannot be decoded"):
        open_clips(records, SIZE, skip_bad=False)[1]
    source = open_clips(records, SIZE, skip_bad=True)
    assert source[0] is not None
    assert source[1] is None
    assert "left out" in capsys.readouterr().err
    long = open_clips(records, SIZE | {"frames": 10}, skip_bad=True)
    assert long[0] is None
    assert "0.mp4: too short" in capsys.readouterr().err
