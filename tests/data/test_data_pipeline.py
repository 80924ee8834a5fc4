import itertools

import numpy as np
import pytest

from dollar_jax.data.dataset import Dataset
from dollar_jax.data.pipeline import batches, in_order
from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.importing import UserError


class Counting:
    """Item i holds i."""

    def __init__(self, count, frames=2):
        self.count, self.frames = count, frames

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return {"index": np.int64(index), "video": np.zeros((self.frames, 1, 1, 3), np.uint8), "caption": f"c{index}"}


def indices(*args, **kwargs):
    return [batch["index"].tolist() for batch in batches(*args, **kwargs)]


def test_a_batch_stacks_what_the_source_holds():
    world = ShapesWorld(40, seed=0)
    batch = next(iter(batches(world, 8, seed=1)))
    assert batch["video"].shape == (8, 9, 32, 32, 3)
    assert batch["video"].dtype == np.uint8
    videos = {world[i]["video"].tobytes(): world[i]["caption"] for i in range(40)}
    captions = [videos[video.tobytes()] for video in batch["video"]]
    assert batch["caption"].tolist() == captions


def test_an_epoch_reads_everything_once_and_each_differently():
    first, second = np.array(indices(Counting(24), 4, seed=0, epochs=2)).reshape(2, 24)
    assert sorted(first) == sorted(second) == list(range(24))
    assert first.tolist() != second.tolist()
    assert first.tolist() != list(range(24))


def test_the_order_is_a_function_of_the_seed():
    assert indices(Counting(24), 4, seed=3, epochs=1) == indices(Counting(24), 4, seed=3, epochs=1)
    assert indices(Counting(24), 4, seed=3, epochs=1) != indices(Counting(24), 4, seed=4, epochs=1)


def test_the_last_partial_batch_is_dropped():
    assert [len(batch) for batch in indices(Counting(11), 4, seed=0, epochs=1)] == [4, 4]


@pytest.mark.parametrize("count", [24, 26])
def test_processes_read_disjoint_and_equal_shares(count):
    shares = [indices(Counting(count), 4, 0, process, 3, epochs=2) for process in range(3)]
    assert [len(share) for share in shares] == [4, 4, 4]
    for epoch in (slice(0, 2), slice(2, 4)):
        read = np.ravel([share[epoch] for share in shares])
        assert len(set(read)) == len(read) == 24
    if count == 26:  # whom an epoch leaves out is not always the same
        assert {*np.ravel([share[:2] for share in shares])} != {*np.ravel([share[2:] for share in shares])}


def test_processes_together_read_what_one_would():
    alone = indices(Counting(24), 8, 0, epochs=1)
    shares = [indices(Counting(24), 4, 0, process, 2, epochs=1) for process in range(2)]
    assert [sorted(batch) for batch in alone] == [sorted(a + b) for a, b in zip(*shares, strict=True)]


def test_it_never_ends():
    assert len(list(itertools.islice(batches(Counting(8), 4, seed=0), 50))) == 50


@pytest.mark.parametrize("done", [0, 1, 7])
def test_a_saved_position_continues_exactly(done):
    interrupted = iter(batches(Counting(20), 4, seed=0))
    for _ in range(done):
        next(interrupted)
    state = interrupted.get_state()
    expected = [next(interrupted)["index"].tolist() for _ in range(8)]
    resumed = iter(batches(Counting(20), 4, seed=0))
    next(resumed)
    resumed.set_state(state)
    assert [next(resumed)["index"].tolist() for _ in range(8)] == expected


def test_videos_and_images_take_turns():
    source = Dataset([Counting(20, frames=5), Counting(10, frames=1)], {})
    shapes = [batch["video"].shape for batch in itertools.islice(batches(source, 2, seed=0), 30)]
    assert shapes.count((2, 5, 1, 1, 3)) == 20
    assert shapes.count((2, 1, 1, 1, 3)) == 10
    assert (2, 1, 1, 1, 3) in shapes[:4]
    shares = [batches(source, 2, 0, process, 2) for process in range(2)]
    for a, b in itertools.islice(zip(*shares, strict=True), 12):
        assert a["video"].shape == b["video"].shape
        assert not set(a["index"]) & set(b["index"])


def test_too_few_examples():
    with pytest.raises(UserError, match="15 examples are too few for 2 batches of 8"):
        batches(Counting(15), 8, seed=0, process_count=2)


def test_in_order_leaves_out_none():
    class Gaps(Counting):
        def __getitem__(self, index):
            return None if index % 3 == 1 else super().__getitem__(index)

    assert [example["index"] for example in in_order(Gaps(8))] == [0, 2, 3, 5, 6]
    both = Dataset([Counting(3), Counting(2, frames=1)], {})
    assert [(example["index"], len(example["video"])) for example in in_order(both)] == [
        (0, 2),
        (1, 2),
        (2, 2),
        (0, 1),
        (1, 1),
    ]


def test_in_order_raises_what_the_source_raises():
    class Broken(Counting):
        def __getitem__(self, index):
            if index == 5:
                raise UserError("clip 5 is broken")
            return super().__getitem__(index)

    with pytest.raises(UserError, match="clip 5 is broken"):
        list(in_order(Broken(8)))
