import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.data.shapes import COLOURS, ShapesWorld
from dollar_jax.errors import UserError
from dollar_jax.rewards.judge import Judge
from dollar_jax.rewards.shapes_world import Alignment, BorderBrightness, CaptionArea, CaptionColour, caption_speed

MODULE = "dollar_jax.rewards.shapes_world"


@pytest.fixture(scope="module")
def clips():
    examples = list(ShapesWorld(12, seed=3))
    return np.stack([clip["video"] for clip in examples]), [clip["caption"] for clip in examples]


def test_share_of_attributes(clips):
    videos, captions = clips
    colour = {"red": "green", "green": "blue", "blue": "yellow", "yellow": "red"}
    wrong = [" ".join(colour.get(word, word) for word in caption.split()) for caption in captions]
    wrong[0] = wrong[0].replace("square", "x").replace("ring", "square").replace("cross", "ring").replace("x", "cross")

    def score(captions, **options):
        return Judge({"name": f"{MODULE}:Alignment", "options": options})(videos, captions)

    np.testing.assert_array_equal(score(captions), 1)
    np.testing.assert_allclose(score(wrong), [1 / 3] + [2 / 3] * 11, rtol=1e-6)
    np.testing.assert_array_equal(score(wrong, attributes=["motion"]), 1)
    np.testing.assert_array_equal(score(wrong, attributes=("colour", "motion")), 0.5)


def test_brightness_of_the_border(clips):
    frames = np.zeros((2, 2, 6, 8, 3), np.float32)
    frames[:, :, 1:-1, 1:-1] = 1.0
    frames[1, :, 0] = 0.5  # 8 of 24 pixels
    judge = Judge({"name": f"{MODULE}:BorderBrightness", "options": {"width": 1}})
    np.testing.assert_allclose(judge(frames, ["", ""]), [0, 1 / 6], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: judge.score(x, {}).sum()))(jnp.asarray(frames))
    np.testing.assert_allclose(gradient, np.where(np.pad(np.ones((4, 6)), 1), 0, 1)[..., None] / 144 + 0 * frames)


def test_colour_of_the_caption(clips):
    videos, captions = clips
    judge = Judge({"name": f"{MODULE}:CaptionColour"})
    assert (judge(videos, captions) > 0.99).all()
    others = [next(colour for colour in COLOURS if colour not in caption) for caption in captions]
    named = [next(colour for colour in COLOURS if colour in caption) for caption in captions]
    wanted = []
    for a, b in zip(named, others, strict=True):
        a, b = (np.array(COLOURS[x]) - np.mean(COLOURS[x]) for x in (a, b))
        wanted.append(a @ b / np.sqrt((a @ a) * (b @ b)))
    np.testing.assert_allclose(judge(videos, [f"a {other} dot" for other in others]), wanted, atol=0.02)


def test_area_of_the_colour():
    frames = np.full((2, 1, 4, 4, 3), 0.3, np.float32)
    frames[0, :, :, :1] = COLOURS["red"]
    judge = Judge({"name": f"{MODULE}:CaptionArea"})
    length = np.std(COLOURS["red"]) * np.sqrt(3)
    np.testing.assert_allclose(judge(frames, ["a red dot", "a red dot"]), [length / 4, 0], atol=1e-6)


def test_speed_where_the_caption_says(clips):
    videos, captions = clips
    still = np.array(["standing" in caption for caption in captions])
    speeds = Judge({"name": f"{MODULE}:caption_speed"})(videos, captions)
    np.testing.assert_allclose(speeds, np.where(still, 0, 1), atol=0.07)
    turned = {"left": "right", "right": "left", "up": "down", "down": "up"}
    others = [" ".join(turned.get(word, word) for word in caption.split()) for caption in captions]
    backwards = Judge({"name": f"{MODULE}:caption_speed"})(videos, others)
    np.testing.assert_allclose(backwards, np.where(still, 0, -1), atol=0.07)
    nowhere = [f"{caption.partition(' moving')[0].partition(' standing')[0]} standing still" for caption in captions]
    speeds = Judge({"name": f"{MODULE}:caption_speed"})(videos, nowhere)
    np.testing.assert_allclose(speeds, np.where(still, 0, -1), atol=0.07)


def test_a_step_along_the_gradient_brings_the_colour():
    judge = Judge({"name": f"{MODULE}:CaptionColour"})
    prepared, grey = judge.prepare(["a blue ring"]), jnp.full((1, 2, 4, 4, 3), 0.5)
    score = jax.jit(lambda x: judge.score(x, prepared)[0])
    gradient = jax.jit(jax.grad(score))
    assert score(grey) == 0
    assert np.isfinite(gradient(grey)).all()
    assert score(grey + 0.01 * gradient(grey)) > 0.9
    faint = grey + np.array([0.01, 0, 0], np.float32).reshape(1, 1, 1, 1, 3)
    along = np.asarray(gradient(faint))
    rise = (score(faint + 1e-4 * along) - score(faint - 1e-4 * along)) / 2e-4
    assert rise == pytest.approx((along**2).sum(), rel=0.01)


def test_user_errors():
    with pytest.raises(UserError, match=r"attributes are some of colour, shape, motion, not \['size'\]"):
        Alignment(["size"])
    with pytest.raises(UserError, match="'a purple ring' names none of red, green, blue, yellow"):
        CaptionColour().prepare(["a red ring", "a purple ring"])
    with pytest.raises(UserError, match="width = 0: the border is one pixel wide, or more"):
        BorderBrightness(width=0)


def test_area_is_the_named_colours_share_of_the_pixels():
    """A video half of pure red and half black has half the chroma of red."""
    red = np.array(COLOURS["red"], np.float32)
    frames = np.zeros((2, 2, 4, 4, 3), np.float32)
    frames[:, :, :2] = red
    reward = CaptionArea()
    captions = ["a red ring moving left", "a blue ring moving left"]
    values = reward.score(jnp.asarray(frames), reward.prepare(captions))
    length = np.linalg.norm(red - red.mean())
    blue = np.array(COLOURS["blue"]) - np.mean(COLOURS["blue"])
    wanted = [length / 2, (red - red.mean()) @ blue / np.linalg.norm(blue) / 2]
    np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_speed_along_the_captions_direction():
    """Of rendered clips whose velocity is known."""
    world = ShapesWorld(24, seed=5)
    clips = [world[i] for i in range(24)]
    frames = np.stack([clip["video"] for clip in clips]) / np.float32(255)
    captions = [clip["caption"] for clip in clips]
    values = caption_speed(frames, captions)
    still = np.array(["still" in caption for caption in captions])
    assert still.any()
    assert (np.abs(values[still]) < 0.05).all()
    assert ((values[~still] > 0.9) & (values[~still] < 1.1)).all()
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    turned = [" ".join(opposite.get(word, word) for word in caption.split()) for caption in captions]
    np.testing.assert_allclose(caption_speed(frames, turned)[~still], -values[~still], atol=1e-5)
    with pytest.raises(UserError, match="not a caption"):
        caption_speed(frames[:1], ["a dog"])
