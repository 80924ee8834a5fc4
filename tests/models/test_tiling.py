import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_same, ours
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange

from dollar_jax.convert import cogvideox_vae as theirs
from dollar_jax.convert.tables import convert
from dollar_jax.errors import UserError
from dollar_jax.models import cogvideox_vae, tiling
from dollar_jax.models.network import Network

TILING = {"tile": (6, 5), "overlap": (2, 1)}
STOCK_TILING = {
    "tile_sample_min_height": 12,
    "tile_sample_min_width": 10,
    "tile_overlap_factor_height": 1 / 3,
    "tile_overlap_factor_width": 1 / 5,
}


@pytest.fixture(scope="module")
def stock():
    """A stock model with random weights that tiles, and our network with the same ones."""
    torch.manual_seed(0)
    model = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8),
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=3,
        temporal_compression_ratio=2,
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
    ).requires_grad_(False)
    model.enable_tiling(**STOCK_TILING)
    network = cogvideox_vae.build(**theirs.config(model.config))
    target = jax.eval_shape(network.init, jax.random.key(0))
    return model, network, convert(theirs.table({}), {k: v.numpy() for k, v in model.state_dict().items()}, target)


def run(method, network, params, x, **sizes):
    return jax.jit(functools.partial(method, network, **sizes))(params, jnp.asarray(x))


def test_tiles_are_those_of_stock(stock):
    model, network, params = stock
    video = torch.randn(2, 3, 9, 20, 8)  # one column of tiles
    posterior = model.encode(video).latent_dist
    mean, log_variance = run(tiling.encode, network, params, ours(video), **TILING)
    assert_same(mean, ours(posterior.mean))
    assert_same(log_variance, ours(posterior.logvar))
    latents = torch.randn_like(posterior.mean)
    assert_same(run(tiling.decode, network, params, ours(latents), **TILING), ours(model.decode(latents).sample))


class Pool(torch.nn.Module):
    """In place of stock's encoder: 8 x 8 pixels become their mean, in units of the tile's maximum."""

    def forward(self, x, conv_cache):
        x = torch.nn.functional.avg_pool3d(x, (1, 8, 8))
        return x / x.amax(), None


class Repeat(torch.nn.Module):
    """In place of stock's decoder."""

    def forward(self, z, conv_cache):
        return (z / z.amax()).repeat_interleave(8, dim=3).repeat_interleave(8, dim=4), None


def pool_and_repeat(seen):
    """The same as an autoencoder that notes the sizes of what it is traced for."""

    def apply(params, x, method):
        seen.append(x.shape[2:4])
        if method == "encode":
            x = rearrange(x, "b f (h y) (w x) c -> b f h w (y x) c", y=8, x=8).mean(axis=4)
            x /= x.max()
            return x, x
        return jnp.repeat(jnp.repeat(x / x.max(), 8, axis=2), 8, axis=3)

    return Network(init=lambda key: {}, apply=apply)


def public(**sizes) -> AutoencoderKLCogVideoX:
    """A model of the public sizes that tiles, with quick networks."""
    with torch.device("meta"):
        model = AutoencoderKLCogVideoX()
    model.enable_tiling(**sizes)
    model.encoder, model.decoder = Pool(), Repeat()
    return model


@pytest.mark.parametrize(
    ("height", "width", "tiles"),
    [
        (480, 720, {(240, 360), (240, 144), (80, 360), (80, 144)}),
        (232, 368, {(232, 360), (232, 80), (32, 360), (32, 80)}),  # less than a tile high, yet two rows
        (240, 360, {(240, 360)}),
    ],
)
def test_default_is_the_public_tiling(height, width, tiles):
    model = public()
    video, latents = torch.rand(1, 3, 1, height, width), torch.rand(1, 3, 1, height // 8, width // 8)
    seen = []
    network = pool_and_repeat(seen)
    assert_same(run(tiling.encode, network, {}, ours(video))[0], ours(model._encode(video)))
    assert set(seen[1:]) == tiles
    assert_same(run(tiling.decode, network, {}, ours(latents)), ours(model._decode(latents).sample))


def test_tile_may_share_more_than_half():
    model = public(
        tile_sample_min_height=48,
        tile_sample_min_width=40,
        tile_overlap_factor_height=2 / 3,
        tile_overlap_factor_width=3 / 5,
    )
    latents = torch.rand(1, 3, 2, 13, 11)
    decoded = run(tiling.decode, pool_and_repeat([]), {}, ours(latents), tile=(6, 5), overlap=(4, 3))
    assert_same(decoded, ours(model._decode(latents).sample))


@pytest.mark.parametrize("size", [(128, 144), (512, 720)])
def test_network_is_compiled_once_per_shape_of_tile(size):
    seen = []
    video = jax.ShapeDtypeStruct((1, 1, *size, 3), jnp.float32)
    jax.eval_shape(functools.partial(tiling.encode, pool_and_repeat(seen), {}, **TILING), video)
    assert seen[0] == size  # for its shape only
    assert seen[1:] == [(48, 40), (48, 16), (32, 40), (32, 16)]


@pytest.mark.parametrize("axis", [2, 3])
def test_fade_is_linear(axis):
    x, y = (jnp.full((1, 2, 5, 5, 3), value) for value in (1.0, 9.0))
    faded = np.moveaxis(tiling.fade(x, y, 4, axis), axis, 0)
    np.testing.assert_allclose(faded, np.moveaxis(y, axis, 0) + np.reshape([-8, -6, -4, -2, 0], (5, 1, 1, 1, 1)))
    np.testing.assert_array_equal(tiling.fade(x, y, 0, axis), y)


def test_fade_is_as_long_as_the_smaller_tile():
    x = jnp.arange(5.0).reshape(1, 1, 5, 1, 1)
    np.testing.assert_allclose(tiling.fade(x, x[:, :, :2] + 3, 4, 2), x[:, :, 3:] + np.zeros((1, 1, 2, 1, 1)))
    assert tiling.fade(x[:, :, :1], x + 7, 4, 2)[0, 0, :, 0, 0].tolist() == [0, 8, 9, 10, 11]


def test_whole_is_kept_where_tiles_agree():
    x = jax.random.normal(jax.random.key(0), (2, 3, 23, 17, 4))
    tiled = tiling.by_tiles(lambda x: x, x, tile=(7, 6), overlap=(4, 0))  # an overlap of more than half a tile
    np.testing.assert_allclose(tiled, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [(6, 1), (2, 5), (-1, 1)])
def test_overlaps_that_are_no_part_of_a_tile(overlap):
    with pytest.raises(UserError, match=r"tiles of \(6, 5\) latents cannot overlap"):
        tiling.by_tiles(lambda x: x, jnp.zeros((1, 1, 8, 8, 3)), (6, 5), overlap)
