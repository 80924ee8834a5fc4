import itertools
import json

import numpy as np
import pytest

from dollar_jax.data.dataset import Dataset
from dollar_jax.data.pipeline import batches, in_order
from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.errors import UserError


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


@pytest.mark.parametrize("shares", [2, 4])
def test_processes_together_read_what_one_would(shares):
    alone = indices(Counting(26), 8, 0, epochs=3)
    parts = [indices(Counting(26), 8, 0, share, shares, epochs=3) for share in range(shares)]
    assert [np.concatenate(rows).tolist() for rows in zip(*parts, strict=True)] == alone


def test_it_never_ends():
    assert len(list(itertools.islice(batches(Counting(8), 4, seed=0), 50))) == 50


@pytest.mark.parametrize("done", [0, 1, 7])
def test_a_saved_position_continues_exactly_on_any_number_of_processes(done):
    interrupted = iter(batches(Counting(20), 4, seed=0))
    for _ in range(done):
        next(interrupted)
    state = json.loads(json.dumps(interrupted.get_state()))
    expected = [next(interrupted)["index"].tolist() for _ in range(8)]
    for shares in (1, 2):
        read = [[] for _ in range(8)]
        for share in range(shares):
            resumed = iter(batches(Counting(20), 4, 0, share, shares))
            next(resumed)
            resumed.set_state(state)
            for batch in read:
                batch += next(resumed)["index"].tolist()
        assert read == expected


def test_videos_and_images_take_turns():
    source = Dataset([Counting(20, frames=5), Counting(10, frames=1)], {})
    shapes = [batch["video"].shape for batch in itertools.islice(batches(source, 2, seed=0), 30)]
    assert shapes.count((2, 5, 1, 1, 3)) == 20
    assert shapes.count((2, 1, 1, 1, 3)) == 10
    assert (2, 1, 1, 1, 3) in shapes[:4]
    shares = [batches(source, 4, 0, share, 2) for share in range(2)]
    for a, b in itertools.islice(zip(*shares, strict=True), 12):
        assert a["video"].shape == b["video"].shape
        assert not set(a["index"]) & set(b["index"])


def test_too_few_examples():
    with pytest.raises(UserError, match="15 examples are too few for a batch of 16"):
        batches(Counting(15), 16, seed=0)
    with pytest.raises(UserError, match="batch_size 8 does not divide over the 3 processes"):
        batches(Counting(15), 8, 0, 0, 3)


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
