import numpy as np
import pytest
from einops import rearrange

from dollar_jax.data.shapes import CAPTIONS, ShapesWorld
from dollar_jax.errors import UserError
from dollar_jax.evaluate import shapes


def load(clips, seed):
    world = ShapesWorld(clips, seed)
    clips = [world[i] for i in range(len(world))]
    return np.stack([c["video"] for c in clips]).astype(np.float32) / 255, [c["caption"] for c in clips]


def encode(frames):
    """Latents of a linear toy VAE: means of blocks, which keep colour and place but not detail."""
    return rearrange(frames, "n (f a) (h b) (w d) c -> n f h w c (a b d)", a=3, b=4, d=4).mean(-1)


@pytest.fixture(scope="module")
def world():
    frames, captions = load(160, 0)
    return shapes.reference(frames, encode(frames), captions)


@pytest.fixture(scope="module")
def clips():
    """Three clips of each of eight captions."""
    frames, captions = load(400, 1)
    rows = [np.flatnonzero(np.array(captions) == caption)[:3] for caption in CAPTIONS[::8]]
    rows = np.concatenate(rows)
    return frames[rows], [captions[row] for row in rows]


def test_real_clips_measure_as_data(world, clips):
    frames, captions = clips
    result = shapes.measure(frames, encode(frames), captions, world)
    assert result["alignment"] == result["colour"] == result["shape"] == result["motion"] == 1
    assert result["clean_db"] > 50
    assert result["spread"] == pytest.approx(1, abs=0.25)
    assert world.background == pytest.approx(0.5 / np.sqrt(12), rel=0.15)
    assert world.position == pytest.approx(3 / np.sqrt(12), rel=0.15)
    assert 1 < result["vendi"] < 3
    assert all(isinstance(value, float) for value in result.values())


def test_a_collapse_shows_in_spread_and_vendi_alone(world, clips):
    frames, captions = clips
    result = shapes.measure(np.repeat(frames[::3], 3, axis=0), encode(frames), captions, world)
    assert result["spread"] == pytest.approx(0, abs=1e-4)
    assert result["vendi"] == pytest.approx(1)
    assert result["vendi_std"] == pytest.approx(0, abs=1e-6)
    assert result["alignment"] == 1


def test_wrong_captions_and_noise_are_seen_where_they_should(world, clips):
    frames, captions = clips
    noisy = np.clip(frames + np.random.default_rng(0).normal(size=frames.shape) * 0.05, 0, 1).astype(np.float32)
    clean, result = (shapes.measure(x, encode(frames), captions, world) for x in (frames, noisy))
    assert result["clean_db"] == pytest.approx(26, abs=1)
    assert result["vendi"] > clean["vendi"]
    colours = [caption.replace("red", "blue") for caption in captions]
    wrong = shapes.measure(frames, encode(frames), colours, world)
    share = np.mean(["red" not in caption for caption in captions])
    assert wrong["alignment"] == wrong["colour"] == pytest.approx(share)
    assert wrong["shape"] == wrong["motion"] == 1


def test_prompts_need_as_many_videos_each(world, clips):
    frames, captions = clips
    with pytest.raises(UserError, match="as many videos of each prompt, not 2 to 3"):
        shapes.measure(frames[1:], encode(frames[1:]), captions[1:], world)


def test_the_order_of_the_clips_does_not_matter(world, clips):
    frames, captions = clips
    order = np.random.default_rng(0).permutation(len(frames))
    shuffled = shapes.measure(frames[order], encode(frames[order]), [captions[i] for i in order], world)
    assert shuffled == pytest.approx(shapes.measure(frames, encode(frames), captions, world))
