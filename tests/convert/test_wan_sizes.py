"""Sizes of videos that a Wan cannot have are refused by the commands in one line, before a video is made."""

import pytest
from commands import run

from dollar_jax.convert.from_torch import from_torch


@pytest.fixture(scope="module")
def teacher(wan_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes") / "teacher"
    from_torch(wan_folder, folder)
    return folder


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("8x16x32", "8 frames"),
        ("9x16x36", "latents of (5, 4, 9) frames, rows and columns do not divide into patches of (1, 2, 2)"),
        ("9x14x32", "14"),
    ],
)
def test_sampling(teacher, tmp_path, size, words):
    (tmp_path / "prompts.txt").write_text("a cat asleep on a piano")
    flags = [f"--checkpoint={teacher}", f"--prompts={tmp_path}/prompts.txt", f"--out={tmp_path}/out", "--steps=1"]
    result = run(["sample", *flags, f"--size={size}"])
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob("*.mp4"))
