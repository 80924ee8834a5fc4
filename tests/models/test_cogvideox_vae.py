import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_same, ours
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange
from flax import nnx

from dollar_jax.convert import cogvideox_vae as theirs
from dollar_jax.convert.tables import convert
from dollar_jax.errors import UserError
from dollar_jax.models import cogvideox_vae
from dollar_jax.models.network import count_parameters

WHOLE = {"encode_chunk": None, "decode_chunk": None}
TINY = {
    "block_out_channels": (8, 8),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "temporal_compression_ratio": 2,
}


@functools.cache
def stock(widths: tuple[int, ...], groups: int, layers: int, latents: int, ratio: int):
    """A stock model with random weights, biases and norms too, and its parameters for our network."""
    torch.manual_seed(len(widths))
    model = AutoencoderKLCogVideoX(
        block_out_channels=widths,
        norm_num_groups=groups,
        layers_per_block=layers,
        latent_channels=latents,
        temporal_compression_ratio=ratio,
        norm_eps=1e-2,  # large, so that a norm that does not use it shows
        down_block_types=("CogVideoXDownBlock3D",) * len(widths),
        up_block_types=("CogVideoXUpBlock3D",) * len(widths),
    ).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn_like(parameter)
    config = theirs.config(model.config)
    target = jax.eval_shape(cogvideox_vae.build(**config).init, jax.random.key(0))
    return model, config, convert(theirs.table({}), {k: v.numpy() for k, v in model.state_dict().items()}, target)


def random_params(config):
    """Random parameters, norms and biases too, without waiting for the network's own initialisation to compile."""
    shapes = jax.eval_shape(cogvideox_vae.build(**config).init, jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(0.2, 0.2, leaf.shape).astype(np.float32), shapes)


@functools.cache
def program(config: str, method: str):
    """One for all tests with this config as JSON: tracing and compilation are what they wait for."""
    apply = functools.partial(cogvideox_vae.build(**json.loads(config)).apply, method=method)
    return jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})


def run(config, params, x, method):
    return program(json.dumps(config, sort_keys=True), method)(params, jnp.asarray(x))


@pytest.mark.parametrize(
    ("sizes", "frames", "batch"),
    [
        (((8, 12, 16), 4, 1, 6, 4), 25, 2),  # chunks of 9, 8 and 8 frames; of 3, 2 and 2 latents
        (((8, 16), 2, 1, 3, 2), 16, 1),  # no lone first frame
        (((8, 16), 2, 1, 3, 2), 1, 2),  # an image
        (((8, 16), 2, 2, 3, 2), 13, 1),  # one chunk of more than 8 frames
    ],
)
def test_chunks_are_those_of_stock_encode_and_decode(sizes, frames, batch):
    model, config, params = stock(*sizes)
    video = torch.randn(batch, 3, frames, 16, 24)
    posterior = model.encode(video).latent_dist
    mean, log_variance = run(config, params, ours(video), "encode")
    assert_same(mean, ours(posterior.mean))
    assert_same(log_variance, ours(posterior.logvar))
    latents = torch.randn_like(posterior.mean)
    assert_same(run(config, params, ours(latents), "decode"), ours(model.decode(latents).sample))


def test_whole_videos_are_one_pass_of_stock_encoder_and_decoder():
    model, config, params = stock((8, 12, 16), 4, 1, 6, 4)
    video, latents = torch.randn(1, 3, 17, 16, 24), torch.randn(1, 6, 5, 4, 6)
    mean, log_variance = run(config | WHOLE, params, ours(video), "encode")
    assert_same(np.concatenate([mean, log_variance], axis=-1), ours(model.encoder(video)[0]))
    assert_same(run(config | WHOLE, params, ours(latents), "decode"), ours(model.decoder(latents)[0]))


def test_public_sizes():
    with torch.device("meta"):
        model = AutoencoderKLCogVideoX()
    network = cogvideox_vae.build(**theirs.config(model.config))
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert count_parameters(params) == sum(p.numel() for p in model.parameters()) == 215_583_907


@pytest.fixture(scope="module")
def tiny():
    return random_params(TINY)


@pytest.fixture(scope="module")
def video():
    return jax.random.normal(jax.random.key(1), (2, 13, 4, 8, 3))


@pytest.mark.parametrize(("encode_chunk", "decode_chunk"), [(2, 1), (4, 3)])
def test_exactly_causal_chunks_are_the_whole(tiny, video, encode_chunk, decode_chunk):
    exact = TINY | {"exactly_causal": True}
    chunks = {"encode_chunk": encode_chunk, "decode_chunk": decode_chunk}
    whole = run(exact | WHOLE, tiny, video, "encode")
    for chunked, expected in zip(run(exact | chunks, tiny, video, "encode"), whole, strict=True):
        assert_same(chunked, expected)
    latents = whole[0][:, :6]  # also an even number has a lone first frame
    decoded = run(exact | WHOLE, tiny, latents, "decode")
    assert decoded.shape == (2, 11, 4, 8, 3)
    assert_same(run(exact | chunks, tiny, latents, "decode"), decoded)


def test_exactly_causal_image_is_the_first_frame_of_a_video(tiny, video):
    exact = TINY | {"exactly_causal": True}
    image = run(exact, tiny, video[:, :1], "encode")[0]
    assert_same(image, run(exact, tiny, video, "encode")[0][:, :1])
    assert_same(run(exact, tiny, image, "decode"), run(exact, tiny, jnp.tile(image, (1, 3, 1, 1, 1)), "decode")[:, :1])


def test_stem_sees_patches_as_channels():
    stem = TINY | {"block_out_channels": (8,), "temporal_compression_ratio": 1, "patch_size": (4, 2, 2)} | WHOLE
    plain = stem | {"patch_size": (1, 1, 1), "in_channels": 48, "out_channels": 48}
    params = random_params(stem)
    video = np.random.default_rng(0).normal(size=(1, 9, 4, 6, 3)).astype(np.float32)
    patches = np.empty((1, 3, 2, 3, 4, 2, 2, 3), np.float32)
    for n, h, w, t, y, x in np.ndindex(3, 2, 3, 4, 2, 2):
        frame = max(4 * n + t - 3, 0)  # the first patch holds the first frame four times
        patches[:, n, h, w, t, y, x] = video[:, frame, 2 * h + y, 2 * w + x]
    mean = run(stem, params, video, "encode")[0]
    assert mean.shape == (1, 3, 2, 3, 4)
    assert_same(mean, run(plain, params, patches.reshape(1, 3, 2, 3, 48), "encode")[0])
    decoded = run(stem, params, mean, "decode")
    patches = np.asarray(run(plain, params, mean, "decode")).reshape(patches.shape)
    assert decoded.shape == video.shape
    for f, row, column in np.ndindex(9, 4, 6):
        n, t = divmod(f + 3, 4)
        expected = patches[:, n, row // 2, column // 2, t, row % 2, column % 2]
        np.testing.assert_allclose(decoded[:, f, row, column], expected, atol=1e-5)


@pytest.mark.parametrize("per_frame", [False, True])
def test_group_norm(per_frame):
    norm = cogvideox_vae.GroupNorm(6, 1e-2, groups=2, per_frame=per_frame, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = jax.random.normal(jax.random.key(0), (2, 6))
    x = 3 + jax.random.normal(jax.random.key(1), (2, 3, 4, 5, 6)) * jnp.arange(1.0, 4).reshape(1, 3, 1, 1, 1)
    alone = rearrange(x, "b f h w c -> (b f) 1 h w c") if per_frame else x
    expected = nnx.GroupNorm.__call__(norm, alone).reshape(x.shape)
    np.testing.assert_allclose(norm(x), expected, atol=1e-5)


def test_long_videos_make_no_larger_programs(tiny):
    network = cogvideox_vae.build(**TINY)

    def program(method, *shape):
        return len(
            str(jax.make_jaxpr(functools.partial(network.apply, method=method))(tiny, jnp.zeros(shape))).splitlines()
        )

    assert program("encode", 1, 129, 4, 4, 3) == program("encode", 1, 17, 4, 4, 3)
    assert program("decode", 1, 65, 2, 2, 4) == program("decode", 1, 5, 2, 2, 4)


def test_bfloat16_computes_in_it_and_returns_float32(tiny, video):
    network = cogvideox_vae.build(**TINY, dtype="bfloat16")
    encoded = jax.make_jaxpr(functools.partial(network.apply, method="encode"))(tiny, video)
    decoded = jax.make_jaxpr(functools.partial(network.apply, method="decode"))(tiny, jnp.zeros((2, 7, 2, 4, 4)))
    for traced in (encoded, decoded):
        assert {value.dtype for value in traced.out_avals} == {jnp.dtype("float32")}
        products = re.findall(r":(\w+)\[[\d,]+\] = (?:conv_general_dilated|dot_general)\[", str(traced))
        assert len(products) > 10
        assert set(products) == {"bf16"}
        means = re.findall(r":(\w+)\[[\d,]+\] = reduce_sum\[", str(traced))  # of the norms
        assert len(means) > 10
        assert set(means) == {"f32"}


def test_log_variance_is_bounded(tiny, video):
    extreme = jax.tree.map(lambda x: x, tiny)
    extreme["encoder"]["conv_out"]["bias"] = jnp.full((8,), 100.0)
    assert run(TINY, extreme, video, "encode")[1].max() == 20


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((1, 14, 4, 4, 3), "give 2 k"), ((1, 13, 5, 4, 3), "give multiples of 2 x 2"), ((1, 13, 4, 5, 3), "multiples")],
)
def test_sizes_that_cannot_be_encoded(tiny, shape, remedy):
    network = cogvideox_vae.build(**TINY, exactly_causal=True)
    with pytest.raises(UserError, match=remedy):
        network.apply(tiny, jnp.zeros(shape), method="encode")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"temporal_compression_ratio": 4}, "temporal_compression_ratio 4"),
        ({"temporal_compression_ratio": 3}, "temporal_compression_ratio 3"),
        ({"norm_num_groups": 3}, "norm_num_groups 3"),
        ({"encode_chunk": 5}, "encode_chunk 5"),
    ],
)
def test_networks_that_cannot_be_built(change, fault):
    with pytest.raises(UserError, match=fault):
        cogvideox_vae.build(**TINY | change)
