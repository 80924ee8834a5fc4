"""Against OpenCV, NumPy and Pillow, on videos whose motion is known."""

import itertools

import cv2
import numpy as np
import pytest
from PIL import Image, ImageChops, ImageStat

from dollar_jax.data.shapes import path, render
from dollar_jax.errors import UserError
from dollar_jax.rewards.motion import dynamic_degree, motion_smoothness, temporal_flickering


def texture(side):
    """A smooth random picture, uint8."""
    noise = np.random.default_rng(0).random((side, side, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return np.rint(255 * smooth).astype(np.uint8)


def panned(x, y, frames=4, side=96):
    """A window that moves over the texture: what it shows moves (-x, -y) pixels a frame."""
    picture = texture(side + 64)
    video = [picture[20 + y * t :][:side, 20 + x * t :][:, :side] for t in range(frames)]
    return np.stack(video)[None] / np.float32(255)


def shape(speed, frames=9):
    centres = path(np.array([32.0, 32.0]), np.array([speed, 0.0]), frames)
    return render("red", "square", 12.0, centres, 0.4, pixels=64)[None]


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0, 2), (3, 4)])
def test_speed_of_a_pan(x, y):
    assert dynamic_degree(panned(x, y), [""])[0] == pytest.approx(np.hypot(x, y), rel=0.1)


@pytest.mark.parametrize("speed", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_speed_of_a_shape(speed):
    """It covers a tenth of the image; the rest stands still."""
    assert dynamic_degree(shape(speed), [""])[0] == pytest.approx(speed, rel=0.2, abs=0.01)


def test_fastest_twentieth_of_the_flow():
    video = np.concatenate([panned(2, 1), panned(0, 0)])
    images = np.rint(video * 255).astype(np.uint8)
    grey = [cv2.cvtColor(np.ascontiguousarray(image[..., ::-1]), cv2.COLOR_BGR2GRAY) for image in images[0]]
    speeds = []
    for a, b in itertools.pairwise(grey):
        flow = cv2.DISOpticalFlow_create(2).calc(a, b, None)
        speed = np.sqrt(flow[..., 0] ** 2 + flow[..., 1] ** 2).ravel()
        speeds.append(sorted(speed)[-(96 * 96 // 20) :])
    np.testing.assert_allclose(dynamic_degree(video, ["", ""]), [np.mean(speeds), 0], rtol=1e-4, atol=1e-4)


def mean_difference(a, b):
    """Of two pictures, by Pillow, 0..255."""
    return np.mean(ImageStat.Stat(ImageChops.difference(Image.fromarray(a), Image.fromarray(b))).mean)


def test_flickering_is_the_difference_of_neighbours():
    video = np.concatenate([panned(2, 1, frames=5), panned(0, 0, frames=5)])
    images = np.rint(video * 255).astype(np.uint8)[0]
    changes = [mean_difference(images[t], images[t + 1]) for t in range(4)]
    assert min(changes) > 5
    np.testing.assert_allclose(temporal_flickering(video, ["", ""]), [1 - np.mean(changes) / 255, 1], rtol=1e-6)


def test_flicker_of_known_depth():
    video = np.full((1, 6, 4, 4, 3), 100 / 255, np.float32)
    video[:, 1::2] = 120 / 255
    np.testing.assert_allclose(temporal_flickering(video, [""]), 1 - 20 / 255, rtol=1e-6)
    np.testing.assert_allclose(motion_smoothness(video, [""]), 1 - 20 / 255, rtol=1e-6)


@pytest.mark.parametrize("frames", [3, 7, 8])
def test_smoothness_is_the_error_of_the_middle_frames(frames):
    video = panned(3, 0, frames=frames)
    images = np.rint(video[0] * 255).astype(np.float64)
    errors = [np.abs(images[t] - (images[t - 1] + images[t + 1]) / 2).mean() for t in range(1, frames - 1, 2)]
    np.testing.assert_allclose(motion_smoothness(video, [""]), 1 - np.mean(errors) / 255, rtol=1e-6)


def test_what_each_punishes():
    fade = np.linspace(0, 240, 7)[None, :, None, None, None] / 255 * np.ones((1, 7, 4, 4, 3))
    assert motion_smoothness(fade, [""])[0] == 1
    assert temporal_flickering(fade, [""])[0] == pytest.approx(1 - 40 / 255)
    smooth = shape(1.0)
    jerky = smooth[:, [0, 0, 3, 3, 3, 6, 6, 8, 8]]
    assert motion_smoothness(jerky, [""])[0] < motion_smoothness(smooth, [""])[0] < 1


def test_too_short():
    for reward, needed in ((dynamic_degree, 2), (temporal_flickering, 2), (motion_smoothness, 3)):
        with pytest.raises(UserError, match=f"at least {needed} frames are needed, not {needed - 1}"):
            reward(np.zeros((1, needed - 1, 8, 8, 3), np.float32), [""])
