import io

import numpy as np
import pytest
from PIL import Image

from dollar_jax import pictures


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def decode(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_enlarge_repeats_whole_pixels():
    frame = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    large = pictures.enlarge(frame, 5)
    assert large.shape == (1, 4, 4, 3)
    assert (large[0, ::2, ::2] == frame[0]).all()
    assert (large[0, 1::2, 1::2] == frame[0]).all()
    assert pictures.enlarge(frame, 1).shape == frame.shape


def test_evenly_keeps_first_and_last():
    assert pictures.evenly(9, 3).tolist() == [0, 4, 8]
    assert pictures.evenly(3, 9).tolist() == [0, 1, 2]


def test_a_strip_holds_the_frames_from_left_to_right_without_loss():
    frames = noise(3, 4, 5, 3)
    assert (decode(pictures.strip(frames)) == np.concatenate(list(frames), axis=1)).all()


def test_side_by_side_leaves_two_columns_between():
    row = pictures.side_by_side(noise(2, 3, 4, 5, 3))
    assert row.shape == (3, 4, 14, 3)
    assert (row[:, :, 7:12] == noise(2, 3, 4, 5, 3)[1]).all()
    assert (row[:, :, 5:7] == 128).all()


@pytest.mark.parametrize(("height", "shape"), [(4, (2, 4, 6, 3)), (100, (2, 8, 12, 3))])
def test_shrink_averages_and_never_enlarges(height, shape):
    frames = np.zeros((2, 8, 12, 3), np.uint8)
    frames[:, ::2] = 200
    small = pictures.shrink(frames, height)
    assert small.shape == shape
    assert small.mean() == 100
    assert (small == 100).all() == (height == 4)


def test_montage_has_a_row_for_each_model_and_the_frames_of_each_prompt():
    clips = {
        "teacher": np.full((2, 9, 32, 32, 3), 200, np.uint8),
        "student": np.zeros((2, 9, 32, 32, 3), np.uint8),
    }
    clips["student"][1, 8, :, :, 0] = 255  # the last frame is shown
    picture = decode(pictures.montage(clips, ["a red ring", "a blue cross"]))
    grey, red = (picture == 200).all(-1), (picture == [255, 0, 0]).all(-1)
    assert grey.sum() == 2 * 4 * 64 * 64
    assert red.sum() == 64 * 64
    assert np.argwhere(grey)[:, 0].max() < np.argwhere(red)[:, 0].min()
    assert np.argwhere(red)[:, 1].max() == np.argwhere(grey)[:, 1].max()
    assert ((picture.sum(-1) > 0) & (picture.max(-1) < 100)).sum() > 100  # letters
