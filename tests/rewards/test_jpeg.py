import io

import jax.numpy as jnp
import numpy as np
from PIL import Image

from dollar_jax.rewards.jpeg import jpeg_compressibility, jpeg_incompressibility


def test_minus_the_kilobytes_that_pillow_writes():
    frames = np.random.default_rng(0).random((2, 3, 24, 40, 3), dtype=np.float32)
    expected = []
    for video in frames:
        sizes = []
        for frame in video:
            file = io.BytesIO()
            Image.fromarray((frame * 255 + 0.5).astype(np.uint8)).save(file, format="jpeg", quality=95)
            sizes.append(len(file.getvalue()))
        expected.append(-sum(sizes) / len(sizes) / 1000)
    np.testing.assert_allclose(jpeg_compressibility(frames, ["", ""]), expected)
    np.testing.assert_allclose(jpeg_compressibility(jnp.asarray(frames), ["", ""]), expected)
    np.testing.assert_allclose(jpeg_incompressibility(frames, ["", ""]), -np.array(expected))


def test_quality():
    frames = np.random.default_rng(0).random((1, 1, 24, 40, 3), dtype=np.float32)
    file = io.BytesIO()
    Image.fromarray(np.rint(frames[0, 0] * 255).astype(np.uint8)).save(file, format="jpeg", quality=30)
    np.testing.assert_allclose(jpeg_incompressibility(frames, [""], quality=30), file.tell() / 1000)
    assert jpeg_compressibility(frames, [""], quality=30) > jpeg_compressibility(frames, [""])


def test_values_outside_the_range_are_clipped():
    frames = np.random.default_rng(0).normal(0.5, 1, (1, 2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(jpeg_compressibility(frames, [""]), jpeg_compressibility(np.clip(frames, 0, 1), [""]))


def test_plain_frames_score_higher_than_noise():
    noise = np.random.default_rng(0).random((1, 1, 32, 32, 3), dtype=np.float32)
    plain, busy = jpeg_compressibility(np.concatenate([np.full_like(noise, 0.5), noise]), ["", ""])
    assert plain > busy + 1
