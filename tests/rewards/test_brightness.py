import numpy as np
import pytest

from dollar_jax.rewards.brightness import brightness


def test_most_of_the_pixels_decide():
    frames = np.full((3, 2, 4, 4, 3), 0.2, np.float32)
    frames[1] = 0.8
    frames[2, :, :2, :3] = 1.0  # three eighths of the image
    np.testing.assert_allclose(brightness(frames, ["a", "b", "c"]), [51 / 255, 204 / 255, 51 / 255])


def test_colours_count_alike_and_in_steps():
    frames = np.zeros((1, 1, 2, 2, 3), np.float32)
    frames[..., 2] = 0.6
    assert brightness(frames, [""])[0] == pytest.approx(0.2)
    assert brightness(frames + 1e-4, [""])[0] == brightness(frames, [""])[0]
