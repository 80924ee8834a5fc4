import os
import resource

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from dollar_jax.data import dataset
from dollar_jax.data.dataset import open_dataset, write_dataset
from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.errors import UserError


def same(a, b):
    return a.keys() == b.keys() and all(
        a[key] == b[key] if isinstance(b[key], str) else a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key])
        for key in b
    )


def encoded(index, frames=3):
    random = np.random.default_rng(index)
    return {
        "latents": random.standard_normal((frames, 8, 8, 4), np.float32),
        "text": random.standard_normal((6, 32)).astype(np.float16),
        "text_mask": np.arange(6) < 4,
        "caption": f"número {index}",
    }


def test_videos_come_back_in_order(tmp_path):
    examples = list(ShapesWorld(12, seed=0))
    assert write_dataset(tmp_path / "data", iter(examples), {"fps": 8}) == 12
    source = open_dataset(tmp_path / "data")
    assert len(source) == 12
    assert all(same(source[i], examples[i]) for i in range(12))
    assert source.info == {"fps": 8}
    assert os.listdir(tmp_path) == ["data"]


def test_latents_come_back(tmp_path):
    write_dataset(tmp_path / "data", map(encoded, range(3)), {})
    source = open_dataset(tmp_path / "data")
    assert all(same(source[i], encoded(i)) for i in (2, 0, 1))


def test_images_come_after_videos(tmp_path):
    frames = [3, 1, 3, 1, 3]
    write_dataset(tmp_path / "data", (encoded(i, count) for i, count in enumerate(frames)), {})
    source = open_dataset(tmp_path / "data")
    assert [len(part) for part in source.parts] == [3, 2]
    assert [source[i]["caption"][-1] for i in range(5)] == ["0", "2", "4", "1", "3"]
    assert [len(source[i]["latents"]) for i in range(5)] == [3, 3, 3, 1, 1]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            source[index]


def test_names_of_files_are_in_the_order_of_the_examples(tmp_path):
    """Videos first; and no column of a batch, which goes to the devices."""
    frames = [3, 1, 3]
    write_dataset(tmp_path / "data", (encoded(i, count) | {"file": f"ü{i}"} for i, count in enumerate(frames)), {})
    source = open_dataset(tmp_path / "data")
    assert source.files == ["ü0", "ü2", "ü1"]
    assert all(same(source[i], encoded(index, frames[index])) for i, index in enumerate((0, 2, 1)))
    (tmp_path / "data/files.txt").write_text("ü0\nü2\n", "utf-8")
    with pytest.raises(UserError, match=r"data: damaged, copy .* \(files.txt has 2 of 3 names\)"):
        open_dataset(tmp_path / "data")
    (tmp_path / "data/files.txt").unlink()
    assert open_dataset(tmp_path / "data").files is None


def test_large_data_are_split_over_files(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_BYTES", 12_000)
    monkeypatch.setattr(dataset, "BLOCK_BYTES", 8_000)
    write_dataset(tmp_path / "data", map(encoded, range(10)), {})
    assert len(list((tmp_path / "data").glob("*.array_record-*"))) == 4
    source = open_dataset(tmp_path / "data")
    assert all(same(source[i], encoded(i)) for i in range(10))


def test_other_readers_open_it(tmp_path):
    write_dataset(tmp_path / "data", map(encoded, range(3)), {})
    builder = tfds.builder_from_directory(tmp_path / "data")
    assert builder.info.splits["videos"].num_examples == 3
    element = grain.MapDataset.source(builder.as_data_source("videos"))[1]
    np.testing.assert_array_equal(element["latents"], encoded(1)["latents"])


@pytest.fixture
def open_files():
    """Sets the limits (soft, hard) of open files; the soft one is set back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_files_than_are_allowed_at_first(tmp_path, monkeypatch, open_files):
    """A low limit is raised; where that is not possible, the message has the reason, and no damage."""
    monkeypatch.setattr(dataset, "SHARD_BYTES", 1)
    write_dataset(tmp_path / "data", map(encoded, range(40)), {})
    few = len(os.listdir("/dev/fd")) + 20
    open_files(few)
    source = open_dataset(tmp_path / "data")
    assert all(same(source[i], encoded(i)) for i in range(40))
    source = open_dataset(tmp_path / "data")
    open_files(few)
    with pytest.raises(UserError, match=r"too many open files, this process may have \d+: raise the limit, ulimit -n"):
        list(map(source.__getitem__, range(40)))


def test_interruption_leaves_nothing(tmp_path):
    def examples():
        yield from map(encoded, range(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "data", examples(), {})
    assert not os.listdir(tmp_path)


def test_nothing_looks_complete_while_writing(tmp_path):
    def examples():
        for index in range(3):
            yield encoded(index)
            with pytest.raises(UserError, match="no dataset here"):
                open_dataset(tmp_path / "data")

    write_dataset(tmp_path / "data", examples(), {})


def test_a_full_disk_is_one_line(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"data cannot be written: .*File too large$"):
            write_dataset(tmp_path / "data", map(encoded, range(50)), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path)


def test_what_exists_is_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_dataset(tmp_path / "data", map(encoded, range(3)), {})
    assert not os.listdir(tmp_path / "data")


def test_no_examples(tmp_path):
    with pytest.raises(UserError, match="nothing to write"):
        write_dataset(tmp_path / "data", [], {})
    assert not os.listdir(tmp_path)


def test_examples_of_another_shape(tmp_path):
    odd = encoded(1) | {"text_mask": np.ones(5, bool)}
    with pytest.raises(ValueError, match="Shape"):
        write_dataset(tmp_path / "data", [encoded(0), odd], {})
    assert not os.listdir(tmp_path)
