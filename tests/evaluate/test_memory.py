"""Parameters to the one, memory against what can be counted by hand, at sizes that compile in a second."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.evaluate import memory
from dollar_jax.evaluate.memory import KEPT, RECOMPUTED

SMALL = {
    "projection_dim": 8,
    "vision_config": {
        **{"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2},
        **{"image_size": 28, "patch_size": 14},
    },
    "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}
SMALL_VAE = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
SMALL_VAE |= {"temporal_compression_ratio": 2, "decode_chunk": None}


@pytest.fixture(scope="module")
def device():
    return jax.devices()[0]


def elements(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_what_a_program_needs():
    """What it reads, what it returns, what lies between, once each; not what it does not read."""
    vector = jax.ShapeDtypeStruct((1000,), jnp.float32)
    compiled = jax.jit(lambda x, y, z: x + y).lower(vector, vector, vector).compile()
    assert memory.needed(compiled) == pytest.approx(12_000, abs=100)
    between = jax.jit(lambda x, y: jnp.sort(x) @ jnp.sort(y)).lower(vector, vector).compile()
    assert memory.needed(between) >= 16_000
    in_place = jax.jit(lambda x: x + 1, donate_argnums=0).lower(vector).compile()
    assert memory.needed(in_place) == pytest.approx(4000, abs=100)


def test_the_gradient_is_that_of_what_the_reward_reads(device):
    """R = sum(params) sum(x) reads 1000 and 5000 numbers; backward also returns the 5000 of dR/dx."""
    vectors = tuple(jax.ShapeDtypeStruct((size,), jnp.float32) for size in (1000, 5000))
    reward = memory.Reward("toy", 1, KEPT, 1000, lambda params, x: params.sum() * x.sum(), vectors)
    row = memory.measure(reward, device)
    assert row["forward"] == pytest.approx(24_004, abs=500)
    assert row["backward"] == pytest.approx(44_004, abs=500)
    assert (row["name"], row["frames"], row["parameters"], row["paper"]) == ("toy", 1, 1000, {})


def test_the_papers_latent_rewards():
    rewards = {reward.name: reward for reward in memory.latent_rewards()}
    assert {name: reward.parameters for name, reward in rewards.items()} == {
        "image LRM": 189_441,
        "text-image LRM": 763_009,
    }
    latents = 40 * 24 * 40 * 12  # 128 frames of 192 x 320: 5 for 16, a latent for 8 x 8 pixels
    assert elements(rewards["image LRM"].arguments) == 189_441 + latents
    assert elements(rewards["text-image LRM"].arguments) == 763_009 + latents + 256 * 4096


def test_the_papers_clip():
    """ViT-H/14 by hand: patches, class token, positions, a norm, 32 layers, a norm, projection."""
    layer = 12 * 1280**2 + 13 * 1280
    tower = 3 * 14**2 * 1280 + 1280 + 257 * 1280 + 2 * 1280 + 32 * layer + 2 * 1280 + 1280 * 1024
    rewards = list(memory.pixel_rewards([12, 128], "bfloat16"))
    assert {reward.parameters for reward in rewards} == {tower} == {632_076_800}
    assert [(reward.frames, reward.activations) for reward in rewards] == [
        *((12, KEPT), (128, KEPT)),
        *((12, RECOMPUTED), (128, RECOMPUTED)),
    ]
    text_tower = 49408 * 1024 + 77 * 1024 + 24 * (12 * 1024**2 + 13 * 1024) + 2 * 1024 + 1024**2
    assert elements(rewards[0].arguments[0]) == tower + text_tower + 1
    assert {leaf.dtype for leaf in jax.tree.leaves(rewards[0].arguments[0])} == {jnp.dtype("bfloat16")}


def test_a_clip_score_is_a_cosine():
    """The squares of the cosines with all axes sum to 1; whatever becomes of the activations, the mean is the same."""
    kept, recomputed = memory.pixel_rewards([3], "float32", SMALL)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.1).astype(np.float32), kept.arguments[0])
    frames = rng.uniform(size=(3, memory.HEIGHT, memory.WIDTH, 3)).astype(np.float32)
    score, axes = jax.jit(kept.score), np.eye(8, dtype=np.float32)
    cosines = np.array([[score(params, frame[None, None], axis) for axis in axes] for frame in frames])
    np.testing.assert_allclose(np.square(cosines).sum(1), 1, rtol=1e-4)
    for score, x in ((kept.score, frames[None]), (recomputed.score, frames[:, None])):
        np.testing.assert_allclose(jax.jit(score)(params, x, axes[0]), cosines[:, 0].mean(), rtol=1e-4)


def test_kept_activations_grow_with_the_frames_and_recomputed_ones_do_not(device):
    """By at least the input of each layer for each frame, against no more than the frames and their gradient."""
    rows = [memory.measure(reward, device) for reward in memory.pixel_rewards([16, 64], "float32", SMALL)]
    kept, recomputed = ([row["backward"] for row in rows if row["activations"] == kind] for kind in (KEPT, RECOMPUTED))
    frame, tokens, config = 4 * memory.HEIGHT * memory.WIDTH * 3, 5, SMALL["vision_config"]
    layers = 4 * config["num_hidden_layers"] * tokens * config["hidden_size"]
    assert np.diff(kept) > 48 * (2 * frame + layers)
    assert np.diff(recomputed) < 48 * 2.1 * frame
    for row in rows:
        assert row["forward"] < row["backward"]
        assert row["forward"] > 4 * row["parameters"] + row["frames"] * frame


def test_from_latents():
    """A score, and its gradient for every latent of the video; the encoder and the text tower do not count."""
    kept, recomputed = memory.decoded_rewards("float32", SMALL, SMALL_VAE)
    assert (kept.activations, recomputed.activations) == (KEPT, RECOMPUTED)
    for reward in (kept, recomputed):
        params, latents, text = reward.arguments
        score, gradient = jax.eval_shape(jax.value_and_grad(reward.score, argnums=1), params, latents, text)
        assert score.shape == ()
        assert gradient.shape == latents.shape
        assert latents.size == 40 * 24 * 40 * 12
        assert reward.parameters == elements(params["vae"]["decoder"]) + elements(params["clip"]["vision"])


def test_the_table():
    row = {"name": "CLIP-H", "frames": 12, "activations": KEPT, "parameters": 632_076_800, "forward": 12_345_678}
    row |= {"backward": 12_345_678_900, "paper": memory.PAPER["CLIP-H", 12]}
    head, rule, *lines = memory.table(
        [row, row | {"name": "image LRM", "paper": {"parameters": "189,441"}}]
    ).splitlines()
    assert set(rule) == {"-"}
    assert head.split()[:3] == ["reward", "activations", "frames"]
    assert " ".join(lines[0].split()) == "CLIP-H kept 12 632,076,800 12.346 MB 12.346 GB 12.373 GB"
    assert " ".join(lines[1].split()) == "image LRM kept 12 632,076,800 189,441 12.346 MB 12.346 GB"
    assert lines[0].index("12.346 GB") == lines[1].index("12.346 GB")
