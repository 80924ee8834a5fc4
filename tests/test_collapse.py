import numpy as np
import pytest

from dollar_jax import collapse
from dollar_jax.evaluate.vendi import vendi

CAPTIONS = ["a", "a", "b", "b"]


def videos(seed=0):
    """Four videos of 3 frames: noise, so that nothing is alike."""
    return np.random.default_rng(seed).uniform(size=(4, 3, 8, 8, 3)).astype(np.float32)


def one_colour(frames):
    return np.broadcast_to(frames.mean((2, 3), keepdims=True), frames.shape)


def still(frames):
    return np.broadcast_to(frames[:, :1], frames.shape)


def all_alike(frames):
    return np.broadcast_to(frames[:1], frames.shape)


def alike_by_caption(frames):
    return frames[[0, 0, 2, 2]]


COLLAPSES = {
    one_colour: {"contrast", "change", "variance", "vendi"},
    still: {"change"},
    all_alike: {"variance", "vendi"},
    alike_by_caption: {"vendi"},
}


def test_values_by_hand():
    frames = np.zeros((2, 2, 1, 2, 3), np.float32)
    frames[0, :, 0, 0] = 1  # white and black, still
    frames[1, 0] = 1  # white, then black
    values = collapse.measure(frames, ["a", "a"])
    assert values["collapse/contrast"] == pytest.approx(0.25)  # 1/2 in two frames of four
    assert values["collapse/change"] == pytest.approx(0.5)
    assert values["collapse/variance"] == pytest.approx((0 + 1 / 4 + 1 / 4 + 0) / 4)
    frames = [vendi(frame.reshape(2, -1)) for frame in frames.swapaxes(0, 1)]
    assert values["collapse/vendi"] == pytest.approx(np.mean(frames) - 1)


@pytest.mark.parametrize(("break_it", "gone"), COLLAPSES.items())
def test_what_is_gone_is_named(break_it, gone):
    start = collapse.measure(videos(), CAPTIONS)
    now = collapse.measure(break_it(videos(1)), CAPTIONS)
    names = {words.split("(")[1].split(" ")[0] for words in collapse.alarms(start, now)}
    assert names == gone


def test_a_healthy_student_is_left_in_peace():
    start, now = (collapse.measure(videos(seed), CAPTIONS) for seed in (0, 1))
    assert collapse.alarms(start, now) == []
    assert collapse.alarms(start, {name: 0.6 * value for name, value in start.items()}) == []
    assert collapse.alarms({}, {}) == []


def test_what_is_not_finite_is_gone():
    start = collapse.measure(videos(), CAPTIONS)
    (words,) = collapse.alarms(start, start | {"collapse/change": None})
    assert words.startswith("its videos hardly move (change 0, 0.")


def test_images_do_not_move_and_single_videos_have_no_twins():
    assert collapse.measure(videos()[:, :1], ["a", "b", "c", "d"]).keys() == {"collapse/contrast", "collapse/variance"}
