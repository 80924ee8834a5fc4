import jax
import numpy as np
import pytest
import toy_pipeline

from dollar_jax import pipeline
from dollar_jax.models.network import Network
from dollar_jax.pipeline import draw_noise
from dollar_jax.videos import Sample, draw, noise_of

SAMPLES = [Sample(f"{prompt}-{video}", f"caption {prompt}", prompt, video) for prompt in (0, 3, 2) for video in (1, 0)]


def test_the_noise_is_that_of_all_prompts_and_videos():
    every, keys = draw_noise(toy_pipeline.CARD, 7, 4, 2)
    noise, some = noise_of(toy_pipeline.CARD, 7, SAMPLES)
    rows = [2 * sample.prompt + sample.video for sample in SAMPLES]
    np.testing.assert_array_equal(noise, every[rows])
    np.testing.assert_array_equal(jax.random.key_data(some), jax.random.key_data(keys[np.array(rows)]))


@pytest.fixture(scope="module")
def model():
    return toy_pipeline.make()


@pytest.fixture(scope="module")
def wanted(model):
    """All at once, as the pipeline does it."""
    condition = model.encode_text([sample.caption for sample in SAMPLES])
    noise, keys = noise_of(model.card, 7, SAMPLES)
    ((latents, frames),) = model.videos(condition, noise, keys, batch_size=len(SAMPLES))
    assert np.ptp(latents, axis=0).min() > 1e-3
    return latents, frames


def test_batches_change_nothing(model, wanted):
    """Six in fours: the second batch is not full."""
    samples, latents, frames = zip(*draw(model, SAMPLES, 7, batch_size=4), strict=True)
    assert list(samples) == SAMPLES
    np.testing.assert_allclose(latents, wanted[0], atol=1e-5)
    assert np.abs(np.stack(frames).astype(int) - wanted[1]).max() <= 1


def test_a_batch_is_large_enough_for_all_devices(model, wanted, monkeypatch):
    """In threes for four devices: each batch has four rows, the last one a repeated row for each that is missing."""
    sizes, sample = [], model.sampler

    def sampler(params, noise, *rest):
        sizes.append(len(noise))
        return sample(params, noise, *rest)

    monkeypatch.setitem(vars(model), "sampler", sampler)
    monkeypatch.setattr(pipeline, "even_batch", lambda size: -(-size // 4) * 4)
    noise, keys = noise_of(model.card, 7, SAMPLES)
    condition = model.encode_text([sample.caption for sample in SAMPLES])
    made = list(model.videos(condition, noise, keys, batch_size=3))
    assert sizes == [4, 4]
    assert [len(frames) for _, frames in made] == [4, 2]
    np.testing.assert_allclose(np.concatenate([latents for latents, _ in made]), wanted[0], atol=1e-5)


def test_large_videos_are_decoded_one_by_one(wanted, monkeypatch):
    """A batch of them in float32, with the decoder's activations, fills a device."""
    seen = []

    def apply(params, x, method):
        seen.append(len(x))
        return toy_pipeline.NETWORKS["vae"].apply(params, x, method)

    model = toy_pipeline.make()
    model.networks["vae"] = Network(None, apply), model.networks["vae"][1]
    latents, frames = wanted
    monkeypatch.setattr(pipeline, "SMALL", 0)
    np.testing.assert_array_equal(model.decode(latents), frames)
    assert set(seen) == {1}


def test_fewer_are_drawn_alike(model, wanted):
    ((_, latents, _),) = draw(model, SAMPLES[3:4], 7)
    np.testing.assert_allclose(latents, wanted[0][3], atol=1e-5)
    assert list(draw(model, [], 7)) == []


def test_given_noise_and_other_steps(model):
    noise, _ = noise_of(model.card, 7, SAMPLES)
    zero, twice, once = (
        np.stack([latents for _, latents, _ in draw(model, SAMPLES, 7, steps, noise=start, batch_size=4)])
        for steps, start in ((None, 0 * noise), (None, noise), (1, noise))
    )
    assert np.abs(zero - twice).max() > 1e-3
    assert np.abs(once - twice).max() > 1e-3
    seeded = np.stack([latents for _, latents, _ in draw(model, SAMPLES, 7, 1, batch_size=4)])
    np.testing.assert_allclose(once, seeded, atol=1e-5)
