"""The position tables against the functions of the stock pipeline."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from diffusers.models.embeddings import Timesteps, get_3d_sincos_pos_embed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from dollar_jax.errors import UserError
from dollar_jax.models import positions


def stock_rotary(grid, width, base, patch_size_t):
    """Cosines and sines [n width] that CogVideoXPipeline would pass for one latent frame a token."""
    config = SimpleNamespace(
        patch_size=2,
        patch_size_t=patch_size_t,
        sample_height=2 * base[0],
        sample_width=2 * base[1],
        attention_head_dim=width,
    )
    pipeline = SimpleNamespace(vae_scale_factor_spatial=8, transformer=SimpleNamespace(config=config))
    f, h, w = grid
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(pipeline, 16 * h, 16 * w, f, torch.device("cpu"))


@pytest.mark.parametrize("grid", [(4, 3, 5), (1, 1, 1), (13, 30, 45)])
@pytest.mark.parametrize("scales", [(1.875, 1.0), (1.0, 0.5)])
def test_sincos(grid, scales):
    f, h, w = grid
    stock = get_3d_sincos_pos_embed(32, (w, h), f, *scales).flatten(0, 1)
    np.testing.assert_allclose(positions.sincos(grid, 32, *scales), stock, atol=1e-5)


# At the base size, wider and taller than it, smaller and larger, and with sizes whose half is rounded to even.
@pytest.mark.parametrize("grid", [(3, 6, 10), (3, 4, 12), (2, 12, 4), (5, 3, 5), (2, 12, 20), (1, 7, 8), (2, 5, 6)])
def test_rotary_fitted_into_the_base(grid):
    cos, sin = stock_rotary(grid, 32, (6, 10), None)
    angles = positions.rotary(grid, 32, (6, 10), fit=True)
    np.testing.assert_allclose(np.repeat(np.cos(angles), 2, axis=-1), cos, atol=1e-5)
    np.testing.assert_allclose(np.repeat(np.sin(angles), 2, axis=-1), sin, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 6, 10), (2, 4, 5)])
def test_rotary_counted_from_the_corner(grid):
    cos, sin = stock_rotary(grid, 32, (6, 10), 1)
    angles = positions.rotary(grid, 32, (6, 10), fit=False)
    np.testing.assert_allclose(np.repeat(np.cos(angles), 2, axis=-1), cos, atol=1e-5)
    np.testing.assert_allclose(np.repeat(np.sin(angles), 2, axis=-1), sin, atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 7, 10), (1, 6, 11)])
def test_rotary_beyond_the_base(grid):
    positions.rotary(grid, 32, (6, 10), fit=True)
    with pytest.raises(UserError, match=r"larger than the network's 6 x 10"):
        positions.rotary(grid, 32, (6, 10), fit=False)


def test_rotary_of_wan():
    """44 of 128 features for time, 42 for height and for width."""
    f, h, w = 21, 3, 52
    stock = WanRotaryPosEmbed(128, (1, 2, 2), 1024)(torch.zeros(1, 1, f, 2 * h, 2 * w))
    ours = positions.turns(positions.angles((np.arange(f), np.arange(h), np.arange(w)), (44, 42, 42)))
    for mine, theirs in zip(ours, stock, strict=True):
        np.testing.assert_allclose(np.repeat(mine, 2, axis=-1), theirs, atol=1e-6)


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1)])
def test_times(flip, shift):
    times = np.array([0.0, 1.0, 312.5, 833.3, 999.0, 1000.0], np.float32)
    stock = Timesteps(256, flip_sin_to_cos=flip, downscale_freq_shift=shift)(torch.tensor(times))
    np.testing.assert_allclose(positions.time_features(jnp.asarray(times), 256, flip, shift), stock, atol=1e-4)
