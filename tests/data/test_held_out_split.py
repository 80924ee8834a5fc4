"""Videos that training never reads: chosen by the names of their files, the same ones when files are added."""

import hashlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import shapes
from dollar_jax.data.dataset import open_dataset, write_dataset
from dollar_jax.data.held_out import is_held_out, split
from dollar_jax.data.shapes import BACKGROUND
from dollar_jax.errors import UserError
from dollar_jax.stages import common
from dollar_jax.stages.common import FITTED, encoded_source, held_out_source, prompts, real_clips, video_source

NAMES = [f"folder/{i}.mp4" for i in range(24)]


def video(name, frames=9):
    return {"video": np.zeros((frames, 32, 32, 3), np.uint8), "caption": f"caption of {name}", "file": name}


def latents(name):
    """The same video, encoded."""
    rest = {"text": np.zeros((6, 2), np.float16), "text_mask": np.ones(6, bool)}
    return {"latents": np.zeros((3, 4, 4, 4), np.float32), "caption": f"caption of {name}", "file": name, **rest}


def dataset(folder, examples):
    write_dataset(folder, iter(examples), {"frames": 9, "height": 32, "width": 32, "fps": 8.0})
    return open_dataset(folder)


def names(source):
    return [source[i]["caption"].removeprefix("caption of ") for i in range(len(source))]


def test_the_hash_by_hand():
    number = int(hashlib.sha256(b"folder/0.mp4").hexdigest()[:16], 16) / 16**16
    assert is_held_out("folder/0.mp4", number + 1e-6)
    assert not is_held_out("folder/0.mp4", number - 1e-6)
    assert all(is_held_out(name, 1.0) and not is_held_out(name, 0.0) for name in NAMES)


def test_the_share_is_that_of_many_files():
    held = sum(is_held_out(f"{i}.mp4", 0.1) for i in range(10_000))
    assert held == pytest.approx(1000, abs=4 * 30)  # standard deviations of a binomial


def test_both_parts_are_the_data_and_stay_so_when_files_are_added(tmp_path):
    source = dataset(tmp_path / "old", map(video, NAMES[::2]))
    training, held_out = split(source, 0.3, (), "old")
    assert sorted(names(training) + names(held_out)) == sorted(NAMES[::2])
    assert len(held_out) > 1
    more = dataset(tmp_path / "new", [video("first.png", 1), *map(video, NAMES)])
    new_training, new_held_out = split(more, 0.3, (), "new")
    assert set(names(held_out)) <= set(names(new_held_out))
    assert set(names(training)) <= set(names(new_training))


def test_a_list_of_files_is_held_out_too(tmp_path):
    source = dataset(tmp_path / "data", [*map(video, NAMES), video("0.png", 1), video("1.png", 1)])
    listed = [NAMES[3], NAMES[5], "1.png"]
    training, held_out = split(source, 0.0, listed, "data")
    assert names(held_out) == listed
    assert [len(part) for part in training.parts] == [22, 1]  # images are a part of their own
    assert training.info == held_out.info == source.info


@pytest.mark.parametrize(
    ("share", "files", "fault"),
    [
        (0.0, ["none.mp4"], r"held_out_files: DATA has no file none\.mp4"),
        (0.0, NAMES[:1], "held_out=0 holds out 1 of the 24 videos in DATA: 2 at least, and not all, are needed"),
        (1e-9, (), "held_out=1e-09 holds out 0 of the 24 videos in DATA"),
        (1.0, (), "held_out=1 holds out 24 of the 24 videos in DATA"),
    ],
)
def test_a_split_that_leaves_nothing_is_one_line(share, files, fault, tmp_path):
    with pytest.raises(UserError, match=fault) as refusal:
        split(dataset(tmp_path / "data", map(video, NAMES)), share, files, "DATA")
    assert "\n" not in str(refusal.value)


@pytest.fixture
def config(tmp_path):
    config = shapes.get_config()
    config.data.update({"path": str(tmp_path / "data"), "held_out": 0.3})
    return config


@pytest.mark.parametrize("example", [video, latents])
def test_training_reads_what_is_not_held_out(config, example, tmp_path):
    """Videos or encoded videos; captions and real clips are of the others."""
    dataset(tmp_path / "data", map(example, NAMES))
    held_out = {name for name in NAMES if is_held_out(name, 0.3)}
    assert set(names(held_out_source(config))) == held_out
    for training in (video_source(config), encoded_source(config, tmp_path)):
        assert set(names(training)) == set(NAMES) - held_out
    assert prompts(config) == [f"caption of {name}" for name in NAMES if name in held_out]
    assert {clip["caption"] for clip in real_clips(config)} == set(prompts(config))


class Seen:
    """A source that notes which examples are read."""

    def __init__(self):
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return video(NAMES[index])

    def __len__(self):
        return len(NAMES)


def test_clips_of_the_other_half_are_not_read(config, monkeypatch):
    """A video can be 0.4 GB."""
    config.report.reference_clips = 4
    seen = Seen()
    monkeypatch.setattr(common, "held_out_source", lambda _: seen)
    assert len(real_clips(config, common.FITTED)) == len(real_clips(config, common.MEASURED)) == 4
    assert seen.read == [0, 2, 4, 6, 1, 3, 5, 7]


def test_data_of_before_are_refused_or_not_split(config, tmp_path):
    """Datasets had no names of files, configs no field."""
    unnamed = ({field: value for field, value in video(name).items() if field != "file"} for name in NAMES)
    dataset(tmp_path / "data", unnamed)
    with pytest.raises(UserError, match=r"data was written without the names of its files, .*held_out=0 to measure"):
        video_source(config)
    config.data = ConfigDict({"path": config.data.path})
    assert names(video_source(config)) == names(held_out_source(config)) == NAMES


def test_the_mean_grey_of_the_reference_is_the_worlds():
    """No caption names it, and half of the variance of videos is its: where the reference is too bright, so is the
    model that seems nearest to data.
    """
    clips = real_clips(shapes.get_config(), FITTED)
    grey = np.array([np.median(clip["video"][0]) for clip in clips]) / 255
    assert grey[len(grey) // 2 :].mean() == pytest.approx(np.mean(BACKGROUND), abs=0.003)  # a standard error
