"""The position tables against the functions of the stock pipeline."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from diffusers.models.embeddings import get_3d_sincos_pos_embed

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
