import numpy as np
import pytest

from dollar_jax.evaluate import collapse
from dollar_jax.evaluate.vendi import vendi

CAPTIONS = ["a", "a", "b", "b"]


def videos(seed=0):
    """Four videos of 3 frames: large squares of random colours, so that nothing is alike, and a little noise."""
    random = np.random.default_rng(seed)
    squares = random.uniform(size=(4, 3, 4, 4, 3)).repeat(4, 2).repeat(4, 3)
    return (220 * squares + 25 * random.uniform(size=squares.shape)).astype(np.uint8)


def one_colour(frames):
    return np.broadcast_to(frames[:, :, :1, :1], frames.shape)


def still(frames):
    return np.broadcast_to(frames[:, :1], frames.shape)


def all_alike(frames):
    return np.broadcast_to(frames[:1], frames.shape)


def alike_by_caption(frames):
    return frames[[0, 0, 2, 2]]


def noise(frames):
    return np.random.default_rng(2).integers(256, size=frames.shape, dtype=np.uint8)


COLLAPSES = {
    one_colour: {"contrast", "vendi"},
    still: {"change"},
    all_alike: {"variance", "vendi"},
    alike_by_caption: {"vendi"},
    noise: {"variance", "vendi", "sharpness"},
}


def measure(frames, captions=CAPTIONS):
    return collapse.measure(frames, captions, collapse.sharpness(videos(9)))


def test_values_by_hand():
    frames = np.zeros((2, 2, 4, 4, 3), np.uint8)
    frames[0, :, 0, 0] = 255  # a white pixel, still
    frames[1, 0] = 255  # white, then black
    values = collapse.measure(frames, ["a", "a"], data_sharpness=0.5)
    assert values["collapse/contrast"] == pytest.approx(np.sqrt(1 / 16 * 15 / 16) / 2)  # in two frames of four
    assert values["collapse/change"] == pytest.approx(0.5)
    # Means over time: 1 at one cell of the first and 0 elsewhere, 1/2 everywhere in the second.
    assert values["collapse/variance"] == pytest.approx(1 / 16)
    first, second = np.zeros(16), np.full(16, 0.5)
    first[0] = 1
    assert values["collapse/vendi"] == pytest.approx(vendi(np.stack([first, second])) - 1)
    frames[0, :, 0, 0], frames[0, :, 1, 1] = 0, 255  # inside: its four cells read 1, 1/4, 1/4 and 0
    assert collapse.sharpness(frames) == pytest.approx(2 * 1.5 / 16)
    assert collapse.measure(frames, ["a", "a"], 0.5)["collapse/sharpness"] == pytest.approx(2 * 2 * 1.5 / 16)


@pytest.mark.parametrize(("break_it", "gone"), COLLAPSES.items())
def test_what_is_gone_is_named(break_it, gone):
    names = {
        words.split("(")[1].split(" ")[0] for words in collapse.alarms(measure(videos()), measure(break_it(videos(1))))
    }
    assert {"sharpness" if name[0].isdigit() else name for name in names} == gone


def test_a_healthy_student_is_left_in_peace():
    start, now = measure(videos()), measure(videos(1))
    assert collapse.alarms(start, now) == []
    assert collapse.alarms(start, {name: 0.6 * value for name, value in start.items()}) == []
    assert collapse.alarms({}, {}) == []


def test_what_is_not_finite_is_gone():
    start = measure(videos())
    (words,) = collapse.alarms(start, start | {"collapse/change": None})
    assert words.startswith("its videos hardly move (change 0, 0.")
    (words,) = collapse.alarms(start, start | {"collapse/sharpness": None})
    assert words.startswith("its frames are noise")


def test_images_do_not_move_and_single_videos_have_no_twins():
    values = measure(videos()[:, :1], ["a", "b", "c", "d"])
    assert values.keys() == {"collapse/contrast", "collapse/variance", "collapse/sharpness"}
