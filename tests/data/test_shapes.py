import numpy as np
import pytest

from dollar_jax.data.shapes import (
    ATTRIBUTES,
    CAPTIONS,
    COLOURS,
    LONG_CAPTIONS,
    MOTIONS,
    SHAPES,
    ShapesWorld,
    attributes,
    coverage,
    path,
    render,
)


def test_captions_name_every_combination_once():
    assert len(set(CAPTIONS)) == len(CAPTIONS) == 60
    assert "a red ring moving left" in CAPTIONS
    assert "a yellow cross standing still" in CAPTIONS


def test_attributes_index_the_tables():
    for caption, (colour, shape, motion) in ATTRIBUTES.items():
        assert caption == f"a {list(COLOURS)[colour]} {SHAPES[shape]} {list(MOTIONS)[motion]}"


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_agrees_with_supersampling(shape):
    size, (cx, cy), pixels, fine = 6.4, (14.3, 17.8), 32, 16
    grid = (np.arange(pixels * fine) + 0.5) / fine
    x, y = np.abs(grid[None, :] - cx), np.abs(grid[:, None] - cy)
    inside = {
        "square": np.maximum(x, y) < 0.9 * size,
        "ring": (np.hypot(x, y) < 1.1 * size) & (np.hypot(x, y) > 0.5 * size),
        "cross": (np.maximum(x, y) < 1.1 * size) & (np.minimum(x, y) < 0.36 * size),
    }[shape]
    expected = inside.reshape(pixels, fine, pixels, fine).mean((1, 3))
    mask = coverage(shape, np.array(size), np.array([cx, cy]), pixels)
    # A straight edge is covered exactly; a circle's as if it were straight across each pixel.
    np.testing.assert_allclose(mask, expected, atol=0.15 if shape == "ring" else 0.05)
    assert abs(mask.sum() / expected.sum() - 1) < 0.01


def test_coverage_of_an_unknown_shape():
    with pytest.raises(ValueError, match="star"):
        coverage("star", np.array(6.0), np.array([16.0, 16.0]), 32)


def test_path_is_centred_and_straight():
    centres = path(np.array([10.0, 20.0]), np.array([1.0, -0.5]), 5)
    np.testing.assert_allclose(centres, [[8, 21], [9, 20.5], [10, 20], [11, 19.5], [12, 19]])


def test_render_puts_colour_on_grey():
    clip = render("blue", "square", 6.0, path(np.array([16.0, 16.0]), np.array([1.0, 0.0]), 3), 0.3)
    assert clip.shape == (3, 32, 32, 3)
    assert clip.dtype == np.float32
    np.testing.assert_allclose(clip[:, 16, 16], np.tile(COLOURS["blue"], (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(clip[:, 0], 0.3, rtol=1e-6)
    np.testing.assert_array_equal(clip[0, :, :-1], clip[1, :, 1:])  # one pixel further right


@pytest.mark.parametrize(("motion", "axis", "sign"), [("right", 2, 1), ("left", 2, -1), ("down", 1, 1), ("up", 1, -1)])
def test_motion_is_as_the_caption_says(motion, axis, sign):
    world = ShapesWorld(200, seed=5)
    clip = next(clip for clip in world if clip["caption"].endswith(motion))
    video = clip["video"] / 255.0
    weight = np.abs(video - video.mean(-1, keepdims=True)).sum(-1)
    middle = np.moveaxis(weight, axis, 1).sum(2) @ np.arange(32) / weight.sum((1, 2))
    assert 7.5 < sign * (middle[-1] - middle[0]) < 8.5


def test_clips_depend_on_seed_and_index_alone():
    world, other = ShapesWorld(50, seed=1), ShapesWorld(20, seed=1)
    for index in (13, 2, 13):
        np.testing.assert_array_equal(world[index]["video"], other[index]["video"])
        assert world[index]["caption"] == other[index]["caption"]
    assert (world[2]["video"] != world[3]["video"]).any()
    assert (world[2]["video"] != ShapesWorld(50, seed=2)[2]["video"]).any()


def test_clips_are_complete_and_captions_even():
    world = ShapesWorld(400, seed=0)
    captions, counts = np.unique([clip["caption"] for clip in world], return_counts=True)
    assert counts.sum() == len(world) == 400
    assert set(captions) == set(CAPTIONS)
    assert counts.max() < 18
    with pytest.raises(IndexError):
        world[400]
    with pytest.raises(IndexError):
        world[-1]


def test_shapes_stay_inside_the_image():
    for clip in ShapesWorld(60, seed=3):
        frame = clip["video"].astype(int)
        border = np.concatenate([frame[:, [0, -1]].reshape(-1, 3), frame[:, :, [0, -1]].reshape(-1, 3)])
        assert np.ptp(border) == 0


def test_background_and_position_spread_as_meant():
    clips = [clip["video"] for clip in ShapesWorld(300, seed=4)]
    backgrounds = np.array([clip[0, 0, 0, 0] for clip in clips]) / 255
    assert 0.1 <= backgrounds.min() < 0.12
    assert 0.58 < backgrounds.max() <= 0.6
    assert abs(backgrounds.std() - 0.144) < 0.01


def test_another_size_shows_the_same_clip_scaled():
    small, large = ShapesWorld(9, seed=0, frames=5, size=32)[3], ShapesWorld(9, seed=0, frames=9, size=64)[3]
    assert large["video"].shape == (9, 64, 64, 3)
    assert small["caption"] == large["caption"]
    reduced = large["video"][::2].reshape(5, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(reduced - small["video"]).mean() < 1


def test_long_captions_name_the_background_of_the_same_clips():
    short, long = list(ShapesWorld(60, seed=4)), list(ShapesWorld(60, seed=4, long_captions=True))
    for plain, full in zip(short, long, strict=True):
        np.testing.assert_array_equal(plain["video"], full["video"])
        word = "dark" if full["video"][0, 0, 0, 0] < 0.35 * 255 else "light"
        assert full["caption"] == f"{plain['caption']} on a {word} background"
    assert attributes(["a red square moving left", "a yellow cross standing still on a light background"]).tolist() == [
        [0, 0, 0, -1],
        [3, 2, 4, 1],
    ]


def test_long_prompts_are_the_short_ones_half_of_them_dark():
    assert [long.partition(" on a ")[0] for long in LONG_CAPTIONS] == list(CAPTIONS)
    meanings = attributes(LONG_CAPTIONS)
    for column, count in zip(meanings.T[:3], (4, 3, 5), strict=True):
        shares = [meanings[column == value, 3].mean() for value in range(count)]
        np.testing.assert_allclose(shares, 0.5, atol=0.051)
