import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from dollar_jax.data.shapes import ATTRIBUTES, CAPTIONS, COLOURS, SHAPES, ShapesWorld, path, render
from dollar_jax.errors import UserError
from dollar_jax.rewards.shapes import alignment, read


@pytest.fixture(scope="module")
def clips():
    examples = list(ShapesWorld(120, seed=7))
    return np.stack([clip["video"] for clip in examples]).astype(np.float32) / 255, [
        clip["caption"] for clip in examples
    ]


def noisy(video, deviation):
    noise = np.random.default_rng(0).standard_normal(video.shape, np.float32)
    return np.clip(video + deviation * noise, 0, 1)


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda video: video,
        lambda video: noisy(video, 0.1),
        lambda video: uniform_filter(video, (0, 0, 3, 3, 0)),
        lambda video: video + np.float32([0.05, -0.02, 0]),
    ],
    ids=["render", "noise", "blur", "tint"],
)
def test_every_clip_is_read_right(clips, corrupt):
    video, captions = clips
    assert all(right.all() for right in alignment(corrupt(video), captions).values())


def test_free_attributes_are_measured():
    centres = path(np.array([15.2, 17.1]), np.array([0.0, -1.03]), 9)
    clip = render("green", "cross", 6.3, centres, 0.42)[None]
    reading = read(np.concatenate([clip, noisy(clip, 0.1)]))
    assert SHAPES[reading.shape[0]] == "cross"
    np.testing.assert_allclose(reading.position, [[-0.8, 1.1]] * 2, atol=0.05)
    np.testing.assert_allclose(reading.velocity, [[0, -1.03]] * 2, atol=0.02)
    np.testing.assert_allclose(reading.size, 6.3, atol=0.05)
    np.testing.assert_allclose(reading.background, 0.42, atol=0.01)


def test_each_attribute_is_scored_alone(clips):
    video, captions = clips
    video, captions = video[:30], captions[:30]
    colour, shape, motion = (list(x) for x in zip(*(ATTRIBUTES[caption] for caption in captions), strict=True))
    names = {index: caption for caption, index in ATTRIBUTES.items()}
    recoloured = [names[(c + 1) % 4, s, m] for c, s, m in zip(colour, shape, motion, strict=True)]
    reshaped = [names[c, (s + 1) % 3, m] for c, s, m in zip(colour, shape, motion, strict=True)]
    moved = [names[c, s, (m + 1) % 5] for c, s, m in zip(colour, shape, motion, strict=True)]
    for wrong, changed in (("colour", recoloured), ("shape", reshaped), ("motion", moved)):
        agrees = alignment(video, changed)
        assert {name: right.mean() for name, right in agrees.items()} == {
            "colour": wrong != "colour",
            "shape": wrong != "shape",
            "motion": wrong != "motion",
            "background": True,  # short captions do not name it
            "all": 0,
        }


def test_frozen_and_reversed_clips_move_otherwise(clips):
    video, captions = clips
    video, captions = video[:40], captions[:40]
    still = np.array(["still" in caption for caption in captions])
    np.testing.assert_array_equal(alignment(np.repeat(video[:, 4:5], 9, 1), captions)["motion"], still)
    np.testing.assert_array_equal(alignment(video[:, ::-1], captions)["motion"], still)


@pytest.mark.parametrize("kind", ["noise", "still noise", "coarse noise", "grey", "red", "not a number"])
def test_garbage_is_never_aligned(kind):
    random = np.random.default_rng(1)
    shape = (60, 9, 32, 32, 3)
    video = {
        "noise": lambda: random.random(shape),
        "still noise": lambda: np.broadcast_to(random.random((60, 1, 32, 32, 3)), shape),
        "coarse noise": lambda: random.random((60, 9, 4, 4, 3)).repeat(8, 2).repeat(8, 3),
        "grey": lambda: np.full(shape, 0.4),
        "red": lambda: np.broadcast_to(COLOURS["red"], shape),
        "not a number": lambda: np.full(shape, np.nan),
    }[kind]()
    assert not alignment(video.astype(np.float32), CAPTIONS)["all"].any()


def test_one_broken_clip_leaves_the_others_alone(clips):
    video, captions = clips[0][:3].copy(), clips[1][:3]
    video[1] = np.nan
    assert alignment(video, captions)["all"].tolist() == [True, False, True]
    assert np.isfinite(read(video).clean_db).tolist() == [True, False, True]


def test_clean_db_is_the_psnr_of_what_was_added(clips):
    video = clips[0][:12]
    for deviation in (0.02, 0.05, 0.1):
        noise = np.random.default_rng(0).standard_normal(video.shape, np.float32)
        expected = -20 * np.log10(deviation)
        np.testing.assert_allclose(read(video + deviation * noise).clean_db, expected, atol=0.2)
    assert (read(video).clean_db > 55).all()


@pytest.mark.parametrize(
    "corrupt",
    [lambda video, x: noisy(video, x / 20), lambda video, x: uniform_filter(video, (0, 0, 1 + x, 1 + x, 0))],
    ids=["noise", "blur"],
)
def test_clean_db_falls_with_every_corruption(clips, corrupt):
    video = clips[0][:12]
    quality = np.array([read(corrupt(video, strength)).clean_db for strength in (0, 2, 4, 6)])
    assert (np.diff(quality, axis=0) < 0).all()


@pytest.mark.parametrize(
    "invalid",
    [{"size": 8.5}, {"background": 0.9}, {"speed": 1.6}, {"angle": 0.5}],
    ids=["size", "background", "speed", "angle"],
)
def test_clean_db_knows_what_is_valid(invalid):
    valid = {"size": 6.5, "background": 0.4, "speed": 1.0, "angle": 0.0}

    def clip(size, background, speed, angle):
        velocity = speed * np.array([np.cos(angle), np.sin(angle)])
        return render("red", "ring", size, path(np.array([16.0, 16.0]), velocity, 9), background)[None]

    assert read(clip(**valid)).clean_db > 55
    assert read(clip(**(valid | invalid))).clean_db < 30


def test_other_resolutions_and_lengths():
    examples = list(ShapesWorld(30, seed=2, frames=5, size=48))
    video = np.stack([clip["video"] for clip in examples]).astype(np.float32) / 255
    assert alignment(video, [clip["caption"] for clip in examples])["all"].all()
    assert (read(video).clean_db > 50).all()


def test_a_caption_of_another_world(clips):
    with pytest.raises(UserError, match="a purple cat"):
        alignment(clips[0][:1], ["a purple cat"])


def test_a_long_caption_must_be_right_about_the_background(clips):
    video, captions = clips[0][:20], clips[1][:20]
    dark = video[:, 0, 0, 0, 0] < 0.35
    for word, right in (("dark", dark), ("light", ~dark)):
        agrees = alignment(video, [f"{caption} on a {word} background" for caption in captions])
        np.testing.assert_array_equal(agrees["background"], right)
        np.testing.assert_array_equal(agrees["all"], right)
    with pytest.raises(UserError, match="'a red ring on a dark background' is not a caption"):
        alignment(video[:1], ["a red ring on a dark background"])
