import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange

from dollar_jax.convert import wan_vae as theirs
from dollar_jax.convert.tables import convert, restore
from dollar_jax.models import wan_vae

COMMON = {"z_dim": 3, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}
STOCK = {
    "2.1": COMMON
    | {"base_dim": 4, "temperal_downsample": [False, True], "scale_factor_temporal": 2, "scale_factor_spatial": 4},
    "2.2": COMMON
    | {
        **{"base_dim": 4, "decoder_base_dim": 6, "temperal_downsample": [True, True], "is_residual": True},
        **{"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 8},
    },
}
WHOLE = {"encode_chunk": None, "decode_chunk": None}
SIZE = {"2.1": (12, 20), "2.2": (24, 40)}  # 3 x 5 latents


@functools.cache
def stock(version):
    """A stock model with random weights, biases and norms too, and the config and parameters of ours."""
    torch.manual_seed(0)
    model = AutoencoderKLWan(**STOCK[version]).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith("gamma"):
            parameter += 0.3 * torch.randn_like(parameter)
    config = theirs.config(model.config)
    target = jax.eval_shape(wan_vae.build(**config).init, jax.random.key(0))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    return model, config, convert(theirs.table(config), state, target)


@functools.cache
def program(version, method, whole=False, **changes):
    _, config, _ = stock(version)
    network = wan_vae.build(**config | (WHOLE if whole else {}) | changes)
    return jax.jit(functools.partial(network.apply, method=method))


def ours(x: torch.Tensor) -> np.ndarray:
    return rearrange(x.numpy(), "b c f h w -> b f h w c")


def assert_same(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("frames", [1, 5, 9])
@pytest.mark.parametrize("version", STOCK)
@pytest.mark.parametrize("whole", [True, False])
def test_stock(version, frames, whole):
    model, config, params = stock(version)
    torch.manual_seed(1)
    video = 2 * torch.rand(2, 3, frames, *SIZE[version]) - 1
    posterior = model.encode(video).latent_dist
    mean, log_variance = program(version, "encode", whole)(params, ours(video))
    assert_same(mean, ours(posterior.mean))
    assert_same(log_variance, ours(posterior.logvar))
    latents = torch.randn_like(posterior.mean)
    expected = ours(model.decode(latents).sample)
    print(np.abs(expected).mean(), np.abs(expected).max())
    assert_same(program(version, "decode", whole)(params, ours(latents)), expected)
