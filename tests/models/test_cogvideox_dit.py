"""The DiT against diffusers' CogVideoXTransformer3DModel with the same random weights."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import relative
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel

from dollar_jax.convert import cogvideox_dit as keys
from dollar_jax.convert.tables import convert
from dollar_jax.errors import UserError
from dollar_jax.models import cogvideox_dit
from dollar_jax.models.network import count_parameters
from dollar_jax.models.stack import REMAT
from dollar_jax.types import Condition

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 24,
    "text_embed_dim": 12,
    "num_layers": 3,
    "sample_width": 10,
    "sample_height": 6,
    "sample_frames": 9,
    "max_text_seq_length": 5,
}
ROTARY = SMALL | {"use_rotary_positional_embeddings": True}
CASES = {  # name: config, latent frames x height x width
    "sincos": (SMALL, (3, 6, 10)),
    "sincos at another size": (SMALL | {"temporal_interpolation_scale": 2.0}, (5, 8, 6)),
    "unusual switches": (
        SMALL
        | {
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "attention_bias": False,
            "patch_bias": False,
            "norm_elementwise_affine": False,
            "norm_eps": 1e-2,
            "patch_size": 1,
            "out_channels": 3,
        },
        (1, 3, 5),
    ),
    "rotary": (ROTARY, (5, 8, 6)),
    "patch_size_t": (ROTARY | {"patch_size_t": 3, "patch_bias": False}, (9, 4, 6)),
    "learned": (ROTARY | {"use_learned_positional_embeddings": True, "in_channels": 8}, (3, 6, 10)),
}


def torch_latents(x) -> torch.Tensor:
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 2))


def told(text):
    """The condition of these embeddings."""
    return Condition(jnp.asarray(text, jnp.float32), jnp.ones(text.shape[:2], bool))


def ours(config, state_dict, network):
    arrays = {key: value.detach().numpy() for key, value in state_dict.items()}
    return convert(keys.table(config), arrays, jax.eval_shape(network.init, jax.random.key(0)))


def random_params(network):
    """Faster than `init`, whose many random bits take seconds to compile."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.1), leaf.dtype), shapes)


@functools.cache
def compute(name):
    """Both networks with the same weights, and everything that the real one computes on random inputs."""
    config, sizes = CASES[name]
    torch.manual_seed(0)
    theirs = CogVideoXTransformer3DModel(**config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if config.get("use_learned_positional_embeddings"):
        torch.nn.init.normal_(theirs.patch_embed.pos_embedding)
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, *sizes, config["in_channels"])).astype(np.float32)
    text = rng.normal(size=(2, config["max_text_seq_length"], config["text_embed_dim"])).astype(np.float32)
    times = np.array([19, 980])
    cotangent = rng.normal(size=(2, *sizes, config["out_channels"])).astype(np.float32)

    rotation = None
    if config.get("use_rotary_positional_embeddings"):
        pipeline = SimpleNamespace(vae_scale_factor_spatial=8, transformer=theirs)
        rotation = CogVideoXPipeline._prepare_rotary_positional_embeddings(
            pipeline, 8 * sizes[1], 8 * sizes[2], sizes[0], torch.device("cpu")
        )
    x, words = torch_latents(latents).requires_grad_(), torch.tensor(text).requires_grad_()
    tokens = []
    kept = [b.register_forward_hook(lambda *a: tokens.append(a[2][0].detach())) for b in theirs.transformer_blocks]
    prediction = theirs(x, words, torch.tensor(times), image_rotary_emb=rotation, return_dict=False)[0]
    for hook in kept:
        hook.remove()
    (prediction * torch_latents(cotangent)).sum().backward()
    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    state, blocks, predictions = theirs.state_dict(), theirs.transformer_blocks, []
    with torch.inference_mode():
        for depth in range(1, len(blocks) + 1):
            theirs.transformer_blocks = blocks[:depth]
            made = theirs(x, words, torch.tensor(times), image_rotary_emb=rotation, return_dict=False)[0]
            predictions.append(np.moveaxis(made.numpy(), 2, -1))

    network = cogvideox_dit.build(remat="everything_saveable", **keys.config(theirs.config))
    return SimpleNamespace(
        config=config,
        network=network,
        params=ours(config, state, network),
        inputs=(jnp.asarray(latents), jnp.asarray(times, jnp.float32), told(text)),
        cotangent=cotangent,
        predictions=predictions,  # of the first block alone, of the first two, ...
        tokens=tokens,  # the video's, after every block
        latents_gradient=np.moveaxis(x.grad.numpy(), 2, -1),
        text_gradient=words.grad.numpy(),
        gradients=None if "patch_embed.pos_embedding" in state else ours(config, gradients, network),
    )


@pytest.fixture(params=CASES)
def case(request):
    return compute(request.param)


def test_a_forward_mode_derivative_is_that_of_finite_differences():
    """Along a direction of latents and times, as for continuous-time consistency."""
    case = compute("rotary")
    latents, times, condition = case.inputs
    direction = jnp.asarray(case.cotangent), jnp.ones_like(times)
    apply = jax.jit(functools.partial(case.network.apply, case.params))

    def moved(by):
        return apply(latents + by * direction[0], times + by * direction[1], condition)

    h = 1e-2
    wanted = (moved(h) - moved(-h)) / (2 * h)
    got = jax.jvp(lambda *inputs: apply(*inputs, condition), (latents, times), direction)[1]
    assert relative(got, wanted) < 1e-2


@pytest.mark.parametrize(("depths", "blocks"), [((0.0, 0.7), (0, 1)), ((1.0,), (2,))])
def test_features_are_the_videos_tokens_after_a_share_of_the_blocks(depths, blocks):
    case = compute("rotary")
    found = case.network.apply(case.params, *case.inputs, depths, method="features")
    for ours, block in zip(found, blocks, strict=True):
        assert relative(ours, case.tokens[block]) < 1e-5


def first_blocks(params, depth):
    """The parameters with later blocks switched off: their gates are 0, so they leave the tokens alone."""
    on = np.arange(params["blocks"]["expand"]["bias"].shape[0]) < depth
    blocks = dict(params["blocks"])
    for name in ("attention_norm", "mlp_norm"):
        modulation = blocks[name]["modulation"]
        modulation = {key: x * on.reshape(-1, *[1] * (x.ndim - 1)) for key, x in modulation.items()}
        blocks[name] = blocks[name] | {"modulation": modulation}
    return params | {"blocks": blocks}


def test_prediction_after_every_block(case):
    """Of all blocks, and of the first few alone, so that a fault names its block."""
    predict = jax.jit(case.network.apply)
    assert len(case.predictions) == case.config["num_layers"]
    for depth, theirs in enumerate(case.predictions, 1):
        prediction = predict(first_blocks(case.params, depth), *case.inputs)
        assert prediction.shape == theirs.shape
        assert relative(prediction, theirs) < 1e-4, depth


@pytest.mark.parametrize("case", ["sincos", "patch_size_t"], indirect=True)
def test_gradients(case):
    latents, times, text = case.inputs

    @jax.jit
    def gradients(*args):
        def loss(params, latents, text):
            return (case.network.apply(params, latents, times, text) * case.cotangent).sum()

        return jax.grad(loss, (0, 1, 2), allow_int=True)(*args)

    params_gradient, latents_gradient, text_gradient = gradients(case.params, latents, text)
    assert relative(latents_gradient, case.latents_gradient) < 1e-3
    assert relative(text_gradient.embedding, case.text_gradient) < 1e-3
    if not case.config.get("use_rotary_positional_embeddings"):
        # A constant added to every key changes no weight: both gradients are rounding alone.
        for tree in (params_gradient, case.gradients):
            bias, scale = (tree["blocks"]["attention"]["key_norm"].pop(name) for name in ("bias", "scale"))
            assert np.abs(bias).max() < 1e-4 * np.abs(scale).max()
    errors = jax.tree.map(relative, params_gradient, case.gradients)
    assert max(jax.tree.leaves(errors)) < 1e-3, errors


def test_bfloat16_inside_float32_outside():
    networks = [cogvideox_dit.build(dtype=dtype, **ROTARY) for dtype in (jnp.float32, jnp.bfloat16)]
    for network in networks:
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    params = random_params(networks[0])
    inputs = jnp.ones((2, 3, 6, 10, 4)), jnp.array([0.0, 999.0]), told(np.ones((2, 5, 12)))
    exact, rounded = (jax.jit(network.apply)(params, *inputs) for network in networks)
    assert exact.dtype == rounded.dtype == jnp.float32
    assert 1e-4 < relative(rounded, exact) < 5e-2


def test_remat_trades_memory_for_the_same_gradient():
    inputs = jnp.ones((4, 3, 6, 10, 4)), jnp.array([5.0, 500.0, 0.0, 999.0]), told(np.ones((4, 5, 12)))
    params = random_params(cogvideox_dit.build(**SMALL))
    gradients, memory = {}, {}
    for remat in REMAT:
        network = cogvideox_dit.build(remat=remat, **SMALL)
        compiled = jax.jit(jax.grad(lambda p, n=network: (n.apply(p, *inputs) ** 2).sum())).lower(params).compile()
        gradients[remat], memory[remat] = compiled(params), compiled.memory_analysis().temp_size_in_bytes
    for gradient in gradients.values():
        for leaf, expected in zip(*map(jax.tree.leaves, (gradient, gradients["everything_saveable"])), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-6)
    names = ["nothing_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable"]
    few, dots, all_of_it = (memory[name] for name in names)
    assert few < dots < all_of_it


def test_the_defaults_are_the_published_2b():
    network = cogvideox_dit.build()
    with torch.device("meta"):
        theirs = CogVideoXTransformer3DModel()
    assert count_parameters(jax.eval_shape(network.init, jax.random.key(0))) == theirs.num_parameters()


def test_user_errors():
    for config, message in [
        ({"dropout": 0.1}, "dropout = 0.0 only"),
        ({"ofs_embed_dim": 512}, "ofs_embed_dim = None only"),
        ({"width": 3}, "has no width"),
        ({"patch_size_t": 2}, "needs use_rotary"),
        ({"use_learned_positional_embeddings": True}, "needs use_rotary"),
        ({"attention_head_dim": 24, "use_rotary_positional_embeddings": True}, "divisible by 16, not 24"),
        ({"remat": "some"}, "remat is one of everything_saveable, dots_with"),
    ]:
        with pytest.raises(UserError, match=message):
            cogvideox_dit.build(**config)


@pytest.mark.parametrize("sizes", [(2, 6, 10), (3, 5, 10), (3, 6, 9)])
def test_latents_that_patches_do_not_tile(sizes):
    network = cogvideox_dit.build(**ROTARY, patch_size_t=3)
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(UserError, match=r"do not divide into patches of \(3, 2, 2\)"):
        jax.eval_shape(network.apply, params, jnp.ones((1, *sizes, 4)), jnp.ones(1), told(np.ones((1, 5, 12))))


@pytest.mark.parametrize(("frames", "length"), [(2, 5), (3, 4)])
def test_learned_positions_have_one_size(frames, length):
    network = cogvideox_dit.build(**ROTARY, use_learned_positional_embeddings=True)
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(UserError, match="learned positions exist for 5 text tokens"):
        jax.eval_shape(
            network.apply, params, jnp.ones((1, frames, 6, 10, 4)), jnp.ones(1), told(np.ones((1, length, 12)))
        )
