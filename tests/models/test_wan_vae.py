import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_same, ours
from diffusers import AutoencoderKLWan
from flax import nnx
from restored import restore

from dollar_jax.convert import wan_vae as theirs
from dollar_jax.convert.tables import convert
from dollar_jax.errors import UserError
from dollar_jax.models import tiling, wan_vae
from dollar_jax.models.network import count_parameters

COMMON = {"z_dim": 3, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}
RESIDUAL = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
STOCK = {
    "2.1": COMMON
    | {"base_dim": 4, "temperal_downsample": [False, True], "scale_factor_temporal": 2, "scale_factor_spatial": 4},
    "2.2": COMMON | RESIDUAL | {"base_dim": 4, "decoder_base_dim": 6, "temperal_downsample": [True, True]},
}
PUBLIC = {
    "2.1": {},
    "2.2": RESIDUAL | {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "scale_factor_spatial": 16},
}
WHOLE = (None, None)
SIZE = {"2.1": (12, 20), "2.2": (24, 40)}  # 3 x 5 latents


@functools.cache
def stock(version):
    """A stock model with random weights, biases and norms too; the config and the parameters of ours."""
    torch.manual_seed(0)
    model = AutoencoderKLWan(**STOCK[version]).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith("gamma"):
            parameter += 0.3 * torch.randn_like(parameter)
    config = theirs.config(model.config)
    target = jax.eval_shape(wan_vae.build(**config).init, jax.random.key(0))
    return model, config, convert(theirs.table(config), numpy(model), target)


def numpy(model) -> dict:
    return {name: value.numpy() for name, value in model.state_dict().items()}


@functools.cache
def program(version, method, chunks=WHOLE):
    network = wan_vae.build(**stock(version)[1], encode_chunk=chunks[0], decode_chunk=chunks[1])
    return jax.jit(functools.partial(network.apply, method=method))


def pixels(version, frames) -> torch.Tensor:
    return 2 * torch.rand(2, 3, frames, *SIZE[version], generator=torch.manual_seed(1)) - 1


@pytest.mark.parametrize(
    ("version", "frames", "chunks"),
    [
        ("2.1", 9, WHOLE),
        ("2.1", 9, (2, 2)),  # of 3, 2, 2 and 2 frames; of 3 and 2 latents
        ("2.2", 1, WHOLE),
        ("2.2", 5, WHOLE),
        ("2.2", 9, (4, 1)),  # of 5 and 4 frames; of one latent each
    ],
)
def test_stock(version, frames, chunks):
    model, _, params = stock(version)
    video = pixels(version, frames)
    posterior = model.encode(video).latent_dist
    mean, log_variance = program(version, "encode", chunks)(params, ours(video))
    assert_same(mean, ours(posterior.mean))
    assert_same(log_variance, ours(posterior.logvar))
    latents = torch.randn_like(posterior.mean)
    decoded = program(version, "decode", chunks)(params, ours(latents))
    assert_same(jnp.clip(decoded, -1, 1), ours(model.decode(latents).sample))


def test_gradient_of_decoding_is_that_of_stock():
    model, config, params = stock("2.2")
    network = wan_vae.build(**config, decode_chunk=None)

    def decode(params, z):
        return jnp.clip(network.apply(params, z, method="decode"), -1, 1)

    latents = torch.randn(2, 3, 3, 3, 5, generator=torch.manual_seed(2), requires_grad=True)
    video = model.decode(latents).sample
    assert (video.abs() == 1).any()  # there the gradient is zero
    weights = torch.randn_like(video)
    (video * weights).sum().backward()

    @jax.jit
    def with_gradient(params, z, weights):
        decoded, pull_back = jax.vjp(functools.partial(decode, params), z)
        return decoded, pull_back(weights)[0]

    decoded, gradient = with_gradient(params, ours(latents.detach()), ours(weights))
    assert_same(decoded, ours(video.detach()))
    assert_same(gradient, ours(latents.grad), 1e-4)


def test_tiles_are_those_of_stock():
    model, config, params = stock("2.1")
    latents = torch.randn(1, 3, 1, 7, 2, generator=torch.manual_seed(3))
    model.enable_tiling(16, 24, 12, 20)  # of 4, 4 and 1 rows of latents
    try:
        expected = ours(model.decode(latents).sample)
    finally:
        model.use_tiling = False
    decode = functools.partial(tiling.decode, wan_vae.build(**config), tile=(4, 6), overlap=(1, 1))
    assert np.abs(expected).max() < 1  # stock clips, but nothing here: all pixels are compared
    assert_same(jax.jit(decode)(params, ours(latents)), expected)


@pytest.mark.parametrize("version", STOCK)
def test_weights_come_back(version):
    model, config, params = stock(version)
    back = restore(theirs.table(config), params)
    assert back.keys() == model.state_dict().keys()
    for name, value in numpy(model).items():
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize(("version", "count"), [("2.1", 126_892_531), ("2.2", 704_688_668)])
def test_public_sizes_and_keys(version, count):
    with torch.device("meta"):
        model = AutoencoderKLWan(**PUBLIC[version])
    config = theirs.config(model.config)
    params = jax.eval_shape(wan_vae.build(**config).init, jax.random.key(0))
    assert count_parameters(params) == count
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params)
    shapes = {name: value.shape for name, value in restore(theirs.table(config), empty).items()}
    assert shapes == {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_defaults_are_the_public_ones():
    with torch.device("meta"):
        config = theirs.config(AutoencoderKLWan().config)
    assert theirs.their_config(config) == theirs.their_config({})


def test_long_videos_make_no_larger_programs():
    _, config, params = stock("2.2")
    network = wan_vae.build(**config)

    def length(method, *shape):
        traced = jax.make_jaxpr(functools.partial(network.apply, method=method))(params, jnp.zeros(shape))
        return len(str(traced).splitlines())

    assert length("encode", 1, 129, 8, 8, 3) == length("encode", 1, 9, 8, 8, 3)
    assert length("decode", 1, 65, 2, 2, 3) == length("decode", 1, 3, 2, 2, 3)


@pytest.mark.parametrize("version", STOCK)
def test_bfloat16_computes_in_it_and_returns_float32(version):
    _, config, params = stock(version)
    network = wan_vae.build(**config, dtype="bfloat16")

    def there_and_back(params, video):
        return network.apply(params, network.apply(params, video, method="encode")[0], method="decode")

    traced = jax.make_jaxpr(there_and_back)(params, ours(pixels(version, 9)))
    assert traced.out_avals[0].dtype == jnp.float32
    products = re.findall(r":(\w+)\[[\d,]+\] = (?:conv_general_dilated|dot_general)\[", str(traced))
    # Only the logits of attention are in float32: one product in each of two networks, chunked after their start.
    assert len(products) > 50
    assert products.count("f32") == 4
    assert products.count("bf16") == len(products) - 4


def test_norm_computes_in_float32():
    norm = wan_vae.ChannelNorm(300, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    norm.scale[...] = jax.random.normal(jax.random.key(0), (300,))
    x = 100 * jax.random.normal(jax.random.key(1), (1, 2, 3, 4, 300), jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True)) * np.asarray(norm.scale[...], np.float64)
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), expected, rtol=2**-8)  # rounded once


def test_norm_of_nothing_is_nothing():
    norm = wan_vae.ChannelNorm(3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    y, pull_back = jax.vjp(norm, jnp.zeros((1, 1, 1, 1, 3)))
    assert not y.any()
    assert np.isfinite(pull_back(y + 1)[0]).all()


def test_log_variance_is_bounded():
    _, _, params = stock("2.1")
    encoder = params["encoder"] | {"quant": params["encoder"]["quant"] | {"bias": np.full(6, 100, np.float32)}}
    assert program("2.1", "encode")(params | {"encoder": encoder}, ours(pixels("2.1", 9)))[1].min() == 20


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((1, 8, 8, 8, 3), "give 4 k"), ((1, 5, 12, 8, 3), "give multiples of 8 x 8"), ((1, 5, 8, 12, 3), "multiples")],
)
def test_sizes_that_cannot_be_encoded(shape, remedy):
    _, config, params = stock("2.2")
    with pytest.raises(UserError, match=remedy):
        wan_vae.build(**config).apply(params, jnp.zeros(shape), method="encode")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"temporal_downsample": [True]}, "1 flags: 3 levels want 2"),
        ({"encode_chunk": 2}, "encode_chunk 2"),
        ({"dim_mult": [1, 2, 3]}, r"8 channels at steps of \(1, 1\) make no groups for 12"),
        (
            {"dim_mult": [1, 1, 8, 8], "temporal_downsample": [False, False, True]},
            r"48 channels at steps of \(1, 2\) fill no 6",
        ),
    ],
)
def test_networks_that_cannot_be_built(change, fault):
    with pytest.raises(UserError, match=fault):
        wan_vae.build(**stock("2.2")[1] | change)
