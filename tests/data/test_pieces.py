"""Datasets written in pieces: a command that was stopped goes on, to the dataset of one that was not."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dollar_jax.data import pieces
from dollar_jax.data.dataset import Dataset, open_dataset, write_dataset
from dollar_jax.data.pieces import open_pieces, origin_of, write_pieces
from dollar_jax.data.pipeline import in_order
from dollar_jax.errors import UserError

INFO = {"frames": 3, "fps": 8}
NAMES = [*(f"{i}.mp4" for i in range(10)), *(f"{i}.png" for i in range(3))]  # pieces of 4, 4, 2 and 3


class Killed(BaseException):
    """The end of a process."""


def video(name):
    frames = 3 if name.endswith("mp4") else 1
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (frames, 32, 32, 3), np.uint8)
    return {"video": pixels, "caption": f"caption of {name}", "file": name}


def latents(name):
    rest = {"text": np.zeros((6, 2), np.float16), "text_mask": np.ones(6, bool)}
    return {"latents": video(name)["video"].astype(np.float32), "caption": name, "file": name, **rest}


def source_of(names):
    return Dataset([[{"file": name} for name in names if name.endswith(kind)] for kind in ("mp4", "png")], {})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 4)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "new" / "data"


def write(folder, names=tuple(NAMES), example=video, bad=(), end=""):
    """Writes or goes on; `end` kills when it is its turn. Returns the names that were made."""
    seen = []

    def make(rows):
        for name in (example["file"] for example in in_order(rows)):
            if name == end:
                raise Killed
            seen.append(name)
            if name not in bad:
                yield example(name)

    try:
        write_pieces(folder, open_pieces(folder, source_of(names), names), make, INFO, "data")
    except Killed:
        assert end or not folder.exists()
    return seen


def contents(folder):
    dataset = open_dataset(folder)
    return dataset.files, dataset.info, list(map(len, dataset.parts)), [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("example", [video, latents])
def test_one_that_was_killed_becomes_the_dataset_of_one_that_was_not(folder, example, tmp_path, capsys):
    assert write(folder, example=example, end="6.mp4") == NAMES[:6]
    assert not folder.exists()
    assert write(folder, example=example, end="1.png") == [*NAMES[4:10], "0.png"]
    assert write(folder, example=example) == NAMES[10:]
    assert "data: 10 of 13 videos were there already" in capsys.readouterr().out
    assert os.listdir(folder.parent) == ["data"]
    write_dataset(tmp_path / "once", map(example, NAMES), INFO)
    np.testing.assert_equal(contents(folder), contents(tmp_path / "once"))
    assert {file.name for file in folder.iterdir()} == {
        *(file.name for file in (tmp_path / "once").iterdir()),
        *(f"captioned_videos-videos.array_record-{i:05d}" for i in range(3)),
    }


@pytest.mark.parametrize("moves", range(6))
def test_one_that_was_killed_while_its_files_were_moved(moves, folder, tmp_path, monkeypatch):
    """Four files and the folder."""
    count, rename = iter(range(99)), Path.rename

    def limited(path, target):
        if path.parent.name != "new" and "unfinished" not in path.name and next(count) == moves:
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", limited)
    write(folder)
    assert folder.exists() == (moves == 5)
    monkeypatch.undo()
    monkeypatch.setattr(pieces, "PIECE", 4)
    if moves < 5:
        assert write(folder) == []
    write_dataset(tmp_path / "once", map(video, NAMES), INFO)
    np.testing.assert_equal(contents(folder), contents(tmp_path / "once"))
    assert os.listdir(folder.parent) == ["data"]


def test_what_changed_is_refused_and_what_was_not_made_may_change(folder):
    write(folder, end="9.mp4")
    before = sorted((folder.parent / "data.unfinished").iterdir())
    with pytest.raises(
        UserError, match=r"data.unfinished was begun from other videos, captions or settings"
    ) as refusal:
        write(folder, ["new.mp4", *NAMES])
    assert "\n" not in str(refusal.value)
    assert sorted((folder.parent / "data.unfinished").iterdir()) == before
    assert write(folder, [name for name in NAMES if name != "9.mp4"]) == [*NAMES[8:9], *NAMES[10:]]  # the bad one
    assert open_dataset(folder).files == [name for name in NAMES if name != "9.mp4"]


def test_a_piece_of_which_all_are_left_out(folder):
    write(folder, bad=NAMES[4:8])
    assert open_dataset(folder).files == [*NAMES[:4], *NAMES[8:]]


def test_nothing_is_left_of_nothing(folder):
    with pytest.raises(UserError, match="data: nothing to write"):
        write(folder, bad=NAMES)
    write(folder, end="0.mp4")
    assert not folder.parent.exists() or not os.listdir(folder.parent)


@pytest.mark.parametrize(("example", "kept"), [(latents, 0), (video, 1)])
def test_a_disk_that_is_too_small(example, kept, folder, monkeypatch):
    """Numbers with a point are refused by an estimate. How much pixels can be compressed is known after a piece, which
    is kept.
    """
    size = sum(value.nbytes for value in example("0.mp4").values() if isinstance(value, np.ndarray))
    folder.parent.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * size))
    with pytest.raises(UserError, match=r"the disk is full: .* MB are free; make room and run the same command"):
        write(folder, example=example)
    assert len(list(folder.parent.glob("data.unfinished/*"))) == kept
    monkeypatch.undo()
    monkeypatch.setattr(pieces, "PIECE", 4)
    assert write(folder, example=example) == NAMES[4 * kept :]


def test_a_dataset_is_known_by_its_description(tmp_path):
    """By captions of another length, for instance, or another name."""
    write_dataset(tmp_path / "a", map(video, NAMES), INFO)
    before = origin_of(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert origin_of(tmp_path / "b") == before
    (tmp_path / "b" / "README").touch()
    assert origin_of(tmp_path / "b") == before
    (tmp_path / "b" / "files.txt").write_text((tmp_path / "b" / "files.txt").read_text().replace("3.mp4", "4.mp4"))
    assert origin_of(tmp_path / "b") != before
