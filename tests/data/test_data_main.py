import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, program, refused, run
from PIL import Image

from dollar_jax.data.dataset import open_dataset
from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.data.video import read_clip, write_video
from dollar_jax.rewards.shapes import alignment

SIZES = ["--frames=9", "--height=32", "--width=32", "--fps=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for index, clip in enumerate(ShapesWorld(12, seed=0)):
        write_video(folder / f"{index}.mp4", clip["video"], fps=8)
        lines.append(json.dumps({"file": f"{index}.mp4", "caption": clip["caption"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    (folder / "bad.mp4").write_bytes(b"nothing")
    (folder / "bad.jsonl").write_text("\n".join([*lines, '{"file": "bad.mp4", "caption": "none"}']))
    (folder / "broken.jsonl").write_text(lines[0] + "\n{")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n0.mp4\n#EXT-X-ENDLIST\n")
    Image.new("1", (12_000, 12_000)).save(folder / "bomb.png")
    (folder / "bomb.jpg").write_bytes((folder / "bomb.png").read_bytes()[:1000])
    for name in ("list.m3u8", "bomb.png", "bomb.jpg", "../0.mp4"):
        line = json.dumps({"file": name, "caption": "none"})
        (folder / f"{Path(name).stem}-{Path(name).suffix[1:]}.jsonl").write_text(line)
    return folder


def test_files_become_a_dataset(folder, tmp_path):
    arguments = [f"--videos={folder}", f"--captions={folder}/bad.jsonl", f"--out={tmp_path}/data", "--skip_bad"]
    command = program(["data", *arguments, "--config=configs/shapes.py"])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12 of 13 files" in done.stdout
    assert "bad.mp4" in done.stderr
    assert os.listdir(tmp_path) == ["data"]
    source = open_dataset(tmp_path / "data")
    assert source.info == {"frames": 9, "height": 32, "width": 32, "fps": 8}
    assert source.files == [f"{index}.mp4" for index in range(12)]
    video = np.stack([clip["video"] for clip in source])
    np.testing.assert_array_equal(video[3], read_clip(folder / "3.mp4", 9, 32, 32, 8))
    assert alignment(video.astype(np.float32) / 255, [clip["caption"] for clip in source])["all"].all()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"captions": "captions.jsonl"}, "give --frames, --height, --width, --fps, or --config=FILE"),
        ({"captions": "bad.jsonl", "sizes": SIZES}, "bad.mp4: cannot be decoded"),
        ({"captions": "broken.jsonl", "sizes": SIZES}, "line 2 is not JSON"),
        ({"captions": "none.jsonl", "sizes": SIZES}, "none.jsonl: No such file"),
        ({"captions": "captions.jsonl", "sizes": ["--config=none.py"]}, "No such file or directory: 'none.py'"),
        ({"captions": "captions.jsonl", "sizes": [*SIZES, "--frames=0"]}, "flag --frames=0"),
        ({"captions": "captions.jsonl", "sizes": [*SIZES, "--frames=100001"]}, "flag --frames=100001"),
        ({"captions": "captions.jsonl", "sizes": [*SIZES, "--fps=inf"]}, "flag --fps=inf"),
        ({"captions": "captions.jsonl", "sizes": [*SIZES, "--fps=nan"]}, "--fps=nan is not a finite number"),
        ({"captions": "list-m3u8.jsonl", "sizes": SIZES}, "list.m3u8: cannot be decoded"),
        ({"captions": "bomb-png.jsonl", "sizes": SIZES}, "bomb.png: cannot be decoded (Image size"),
        ({"captions": "bomb-jpg.jsonl", "sizes": SIZES}, "bomb.jpg: cannot be decoded"),
        ({"captions": "0-mp4.jsonl", "sizes": SIZES}, "points to '../0.mp4', outside itself"),
        (
            {"captions": "captions.jsonl", "sizes": [*SIZES, "--encode"]},
            "--encode and --teacher=CHECKPOINT go together",
        ),
        ({"captions": "captions.jsonl", "sizes": [*SIZES, "--depth=3"]}, "Unknown command line flag 'depth'"),
    ],
)
def test_faults_are_one_line_and_leave_nothing(folder, tmp_path, changes, fault):
    sizes = changes.get("sizes", [])
    flags = [f"--videos={folder}", f"--captions={folder}/{changes['captions']}", f"--out={tmp_path}/data", *sizes]
    done = run(["data", *flags])
    assert done.returncode == 2
    assert fault in done.stderr
    assert done.stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_a_command_that_was_stopped_goes_on(folder, tmp_path):
    """Images are in another piece than the 12 videos: one that cannot be decoded does not end the work on these."""
    lines = (folder / "captions.jsonl").read_text()
    (tmp_path / "captions.jsonl").write_text(lines + '\n{"file": "bomb.png", "caption": "none"}')
    flags = ["data", f"--videos={folder}", f"--captions={tmp_path}/captions.jsonl", f"--out={tmp_path}/data", *SIZES]
    done = run(flags)
    assert done.returncode == 2
    assert "bomb.png: cannot be decoded" in done.stderr
    assert "--skip_bad" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["captions.jsonl", "data.unfinished"]
    refused(run([*flags, "--fps=9"]), "data.unfinished was begun from other videos, captions or settings", "remove it")
    done = run([*flags, "--skip_bad"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"data: 12 of 13 videos were there already\n{tmp_path}/data: 12 of 13 files written\n"
    assert open_dataset(tmp_path / "data").files == [f"{index}.mp4" for index in range(12)]
    assert sorted(os.listdir(tmp_path)) == ["captions.jsonl", "data"]


def test_a_folder_that_exists_is_left_alone(folder, tmp_path):
    done = run(["data", f"--videos={folder}", f"--captions={folder}/captions.jsonl", f"--out={tmp_path}", *SIZES])
    assert done.returncode == 2
    assert f"{tmp_path} exists already" in done.stderr
    assert not os.listdir(tmp_path)


def test_help_shows_every_flag():
    done = run(["data", "--help"])
    for flag in ("videos", "captions", "out", "config", "frames", "height", "width", "fps", "encode", "teacher"):
        assert f"--{flag}" in done.stdout or f"--[no]{flag}" in done.stdout
    assert "captions.jsonl has a line" in done.stdout
