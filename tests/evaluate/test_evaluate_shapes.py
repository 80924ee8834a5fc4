import numpy as np
import pytest
from einops import rearrange

from configs import shapes
from dollar_jax.data.shapes import CAPTIONS, ShapesWorld
from dollar_jax.evaluate.measure import Clips, Metrics
from dollar_jax.evaluate.metrics.spread import deviations
from dollar_jax.evaluate.shapes import reading


def load(clips, seed):
    world = ShapesWorld(clips, seed)
    clips = [world[i] for i in range(len(world))]
    return np.stack([c["video"] for c in clips]), [c["caption"] for c in clips]


def encode(frames):
    """Latents of a linear toy VAE: means of blocks, which keep colour and place but not detail."""
    blocks = rearrange(frames / np.float32(255), "n (f a) (h b) (w d) c -> n f h w c (a b d)", a=3, b=4, d=4)
    return blocks.mean(-1)


@pytest.fixture(scope="module")
def world():
    frames, captions = load(160, 0)
    return Clips(frames, encode(frames), captions)


@pytest.fixture(scope="module")
def measure(world):
    """(frames, captions) -> what configs/shapes.py measures of them."""
    fitted = Metrics(shapes.get_config().report.metrics.to_dict()).fit(world)
    return lambda frames, captions: fitted(Clips(frames, encode(frames), captions))


@pytest.fixture(scope="module")
def clips():
    """Three clips of each of eight captions."""
    frames, captions = load(400, 1)
    rows = [np.flatnonzero(np.array(captions) == caption)[:3] for caption in CAPTIONS[::8]]
    rows = np.concatenate(rows)
    return frames[rows], [captions[row] for row in rows]


def test_real_clips_measure_as_data(world, measure, clips):
    result = measure(*clips)
    assert result["alignment"] == result["colour"] == result["shape"] == result["motion"] == 1
    assert result["clean_db"] > 50
    assert result["spread"] == pytest.approx(1, abs=0.25)
    background, position = deviations(world.once(reading), world.captions)
    assert background == pytest.approx(0.5 / np.sqrt(12), rel=0.15)
    assert position == pytest.approx(3 / np.sqrt(12), rel=0.15)
    assert 1 < result["vendi"] < 3
    assert all(isinstance(value, float) for value in result.values())


def test_a_collapse_shows_in_spread_and_vendi_alone(measure, clips):
    frames, captions = clips
    result = measure(np.repeat(frames[::3], 3, axis=0), captions)
    assert result["spread"] == pytest.approx(0, abs=1e-4)
    assert result["vendi"] == pytest.approx(1)
    assert result["vendi_std"] == pytest.approx(0, abs=1e-6)
    assert result["alignment"] == 1


def test_wrong_captions_and_noise_are_seen_where_they_should(measure, clips):
    frames, captions = clips
    noise = np.random.default_rng(0).normal(size=frames.shape) * 0.05 * 255
    noisy = np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)
    clean, result = (measure(x, captions) for x in (frames, noisy))
    assert result["clean_db"] == pytest.approx(26, abs=1)
    assert result["vendi"] > clean["vendi"]
    wrong = measure(frames, [caption.replace("red", "blue") for caption in captions])
    share = np.mean(["red" not in caption for caption in captions])
    assert wrong["alignment"] == wrong["colour"] == pytest.approx(share)
    assert wrong["shape"] == wrong["motion"] == 1


def test_a_vendi_score_needs_two_videos_and_as_many_of_each_prompt(measure, clips):
    """Of one video it would be 1, as of a collapse; with nothing to compare, it is no number."""
    frames, captions = clips
    for rows in (slice(1, None), slice(None, None, 3)):  # 2 of the first prompt, 3 of the others; 1 of each
        result = measure(frames[rows], captions[rows])
        assert np.isnan([result["vendi"], result["vendi_std"]]).all()
        assert np.isfinite(result["frechet"])
    assert np.isfinite(measure(frames[3:], captions[3:])["vendi"])


def test_the_order_of_the_clips_does_not_matter(measure, clips):
    frames, captions = clips
    order = np.random.default_rng(0).permutation(len(frames))
    shuffled = measure(frames[order], [captions[i] for i in order])
    assert shuffled == pytest.approx(measure(frames, captions))
