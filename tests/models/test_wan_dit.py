"""The DiT of Wan against diffusers' WanTransformer3DModel with the same random weights."""

import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import relative
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from restored import restore

from dollar_jax.convert import wan_dit as keys
from dollar_jax.convert.tables import convert
from dollar_jax.convert.tensors import Tensors, open_folder, write_folder
from dollar_jax.errors import UserError
from dollar_jax.lazy import lazy
from dollar_jax.models import wan_dit, wan_experts
from dollar_jax.models.network import count_parameters
from dollar_jax.types import Condition

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": 6,
    "freq_dim": 8,
    "ffn_dim": 20,
    "num_layers": 2,
}
WORDS, LENGTH = 5, 9  # rows of text that are given, and rows that are attended to
CASES = {  # name: config, latent frames x height x width
    "small": (SMALL, (3, 6, 10)),
    "unusual sizes": (
        SMALL
        | {
            "num_layers": 1,
            "num_attention_heads": 3,
            "attention_head_dim": 14,
            "patch_size": (2, 1, 3),
            "out_channels": 2,
            "eps": 0.3,
        },
        (6, 5, 9),
    ),
}


def torch_latents(x) -> torch.Tensor:
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))


def told(text):
    """The condition of these embeddings."""
    return Condition(jnp.asarray(text, jnp.float32), jnp.ones(text.shape[:2], bool))


def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0))


def random_model(config) -> WanTransformer3DModel:
    """With weights of which none has a special value."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(**config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@functools.cache
def compute(name):
    """Both networks with the same weights, and everything that the real one computes on random inputs."""
    config, sizes = CASES[name]
    theirs = random_model(config)
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, *sizes, config["in_channels"])).astype(np.float32)
    text = rng.normal(size=(2, WORDS, config["text_dim"])).astype(np.float32)
    times = np.array([19.5, 980.0], np.float32)
    cotangent = rng.normal(size=(2, *sizes, config["out_channels"])).astype(np.float32)

    x, words = torch_latents(latents).requires_grad_(), torch.tensor(text).requires_grad_()
    padded = torch.nn.functional.pad(words, (0, 0, 0, LENGTH - WORDS))
    tokens = []
    kept = [b.register_forward_hook(lambda *a: tokens.append(a[2].detach())) for b in theirs.blocks]
    prediction = theirs(x, torch.tensor(times), padded, return_dict=False)[0]
    for hook in kept:
        hook.remove()
    (prediction * torch_latents(cotangent)).sum().backward()
    gradients = {key: parameter.grad.numpy() for key, parameter in theirs.named_parameters()}
    state, blocks, predictions = theirs.state_dict(), theirs.blocks, []
    with torch.inference_mode():
        for depth in range(1, len(blocks) + 1):
            theirs.blocks = blocks[:depth]
            made = theirs(x, torch.tensor(times), padded, return_dict=False)[0]
            predictions.append(np.moveaxis(made.numpy(), 1, -1))

    config = {**theirs.config, "text_length": LENGTH}
    ours = {name: value for name, value in config.items() if not name.startswith("_")}
    target = shapes(wan_dit.build(**ours))
    return SimpleNamespace(
        config=ours,
        params=convert(keys.table(ours), {key: value.numpy() for key, value in state.items()}, target),
        inputs=(jnp.asarray(latents), jnp.asarray(times), told(text)),
        cotangent=cotangent,
        predictions=predictions,  # of the first block alone, of the first two, ...
        tokens=tokens,  # after every block
        latents_gradient=np.moveaxis(x.grad.numpy(), 1, -1),
        text_gradient=words.grad.numpy(),
        gradients=convert(keys.table(ours), gradients, target),
    )


@pytest.mark.parametrize("name", CASES)
def test_prediction_after_every_block(name):
    """Of all blocks, and of the first few alone, so that a fault names its block."""
    case = compute(name)
    predict = jax.jit(wan_dit.build(**case.config).apply)
    assert len(case.predictions) == case.config["num_layers"]
    for depth, theirs in enumerate(case.predictions, 1):
        first = jax.tree.map(lambda x, depth=depth: x[:depth], case.params["blocks"])
        prediction = predict(case.params | {"blocks": first}, *case.inputs)
        assert prediction.shape == theirs.shape
        assert relative(prediction, theirs) < 3e-5, depth  # the exact GELU would make 5e-5


def test_features_are_the_tokens_after_a_share_of_the_blocks():
    """Of an A14B too: each example's are those of its expert,."""
    case = compute("small")
    found = wan_dit.build(**case.config).apply(case.params, *case.inputs, (0.5, 1.0), method="features")
    assert [relative(ours, theirs) < 3e-5 for ours, theirs in zip(found, case.tokens, strict=True)] == [True, True]
    params = {"high": jax.tree.map(jnp.zeros_like, case.params), "low": case.params}
    experts = wan_experts.build(boundary=500.0, **case.config)
    (mixed,) = experts.apply(params, *case.inputs, (0.5,), method="features")
    assert relative(mixed[:1], case.tokens[0][:1]) < 3e-5
    assert relative(mixed[1:], case.tokens[0][1:]) > 0.1


@pytest.mark.parametrize("remat", ["everything_saveable", "offload_blocks"])
def test_gradients(remat):
    """Whatever is recomputed; the test of CogVideoX compares all policies of `stack`."""
    case = compute("small")
    network = wan_dit.build(remat=remat, **case.config)
    latents, times, condition = case.inputs

    @jax.jit
    def gradients(*args):
        def loss(params, latents, text):
            return (network.apply(params, latents, times, condition.replace(embedding=text)) * case.cotangent).sum()

        return jax.grad(loss, (0, 1, 2))(*args)

    params_gradient, latents_gradient, text_gradient = gradients(case.params, latents, condition.embedding)
    assert relative(latents_gradient, case.latents_gradient) < 1e-3
    assert relative(text_gradient, case.text_gradient) < 1e-3
    errors = jax.tree.map(relative, params_gradient, case.gradients)
    assert max(jax.tree.leaves(errors)) < 1e-3, errors


def test_bfloat16_inside_float32_outside():
    case = compute("small")
    network = wan_dit.build(dtype=jnp.bfloat16, **case.config)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(network))} == {jnp.dtype("float32")}
    prediction = jax.jit(network.apply)(case.params, *case.inputs)
    assert prediction.dtype == jnp.float32
    assert 1e-4 < relative(prediction, case.predictions[-1]) < 5e-2


def test_time_and_modulation_are_float32_in_bfloat16():
    """Sums of 1 + 2^-10, which bfloat16 rounds to 1, and -1."""
    network = wan_dit.build(dtype=jnp.bfloat16, text_length=LENGTH, **SMALL)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes(network))
    little, wave = 2.0**-10, np.resize([1.0, 0.0, -1.0, 0.0], 32)
    # In the last block x = 0 becomes the wave, by the MLP's bias and a gate of 2^-10; one of 0 would leave it.
    params["blocks"]["modulation"][1, 5] = 1 + little
    params["time_modulation"]["bias"][:] = -1
    params["blocks"]["contract"]["bias"][1] = wave / little
    # Before the projection, the second feature of the normalised wave is 0, and its shift 2^-10.
    params["time_project"]["bias"][1] = 1 + little
    params["modulation"][0, 1] = -1
    params["project"]["kernel"][[0, 1], [0, 1]] = 1
    condition = told(np.zeros((1, WORDS, 6)))
    prediction = jax.jit(network.apply)(params, jnp.zeros((1, 1, 2, 2, 3)), jnp.array([500.0]), condition)
    np.testing.assert_allclose(prediction[0, 0, 0, 0, :2], [2**0.5, little], rtol=2**-8)


def test_the_defaults_are_the_published_1_3b():
    with torch.device("meta"):
        theirs = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
    assert count_parameters(shapes(wan_dit.build())) == theirs.num_parameters()
    assert keys.config(theirs.config) == keys.config({"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30})
    assert keys.config(theirs.config) == vars(wan_dit.Config())
    assert (
        wan_dit.Config().text_length
        == inspect.signature(WanPipeline.__call__).parameters["max_sequence_length"].default
    )


def test_config_there_and_back():
    """What a config.json leaves out has the value of diffusers, which is not always ours."""
    theirs = {name: value for name, value in WanTransformer3DModel(**SMALL).config.items() if name[0] != "_"}
    assert keys.their_config(keys.config(theirs)) == theirs
    stock = inspect.signature(WanTransformer3DModel.__init__).parameters
    assert keys.their_config(keys.config({})) == {name: stock[name].default for name in theirs}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_there_and_back(dtype, tmp_path):
    """Bit for bit, in shards; a file of bfloat16 has the exceptions that diffusers makes when it loads a model."""
    model = random_model(SMALL)
    for name, parameter in model.named_parameters():
        if not set(name.split(".")) & set(model._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    theirs = open_folder(tmp_path / "theirs")
    assert len({theirs[key].dtype for key in theirs}) == (1 if dtype == torch.float32 else 2)
    config = keys.config(model.config)
    params = convert(keys.table(config), theirs, shapes(wan_dit.build(**config)))
    write_folder(tmp_path, "model", restore(keys.table(config), params), shard_bytes=20_000)
    ours = open_folder(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert ours.keys() == theirs.keys()
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], strict=True)


def test_original_names():
    """Those that diffusers reads; a file that has them says which network it holds."""
    config = keys.config(SMALL | {"num_attention_heads": 1, "attention_head_dim": 128})
    rng = np.random.default_rng(0)
    target = shapes(wan_dit.build(**config))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), target)
    original = restore(keys.original_table(config), params)
    wanted = restore(keys.table(config), params)
    renamed = convert_wan_transformer_to_diffusers(dict(original))
    assert renamed.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(renamed[key], value)

    comfy = {f"model.diffusion_model.{key}": value for key, value in original.items()}
    tensors = keys.without_prefix(Tensors({key: lazy(value) for key, value in comfy.items()}, 0))
    assert keys.original_config(tensors.shapes) == config
    back = convert(keys.original_table(config), tensors, target)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_files_with_original_names_that_are_refused():
    table = keys.original_table({})
    file = {rule.theirs.format(layer=0): (1536, 16, 1, 2, 2) for rule in table}
    for change, message in [
        (
            {"head.head.weight": None, "text_embedding.0.weight": None},
            r"lacks text_embedding.0.weight, head.head.weight:",
        ),
        ({"img_emb.proj.1.weight": (1280, 1280)}, "for image-to-video"),
        ({"patch_embedding.weight": (1500, 16, 1, 2, 2)}, "1500 wide: only widths that divide into heads of 128"),
        ({"patch_embedding.weight": (1536, 36, 1, 2, 2)}, "takes 36 channels and predicts 384"),
    ]:
        shapes = {key: shape for key, shape in (file | change).items() if shape is not None}
        with pytest.raises(UserError, match=message):
            keys.original_config(shapes)


def test_user_errors():
    for config, message in [
        ({"cross_attn_norm": False}, "cross_attn_norm = True only, not False"),
        ({"qk_norm": "rms_norm"}, "qk_norm = rms_norm_across_heads only, not rms_norm"),
        ({"image_dim": 1280}, "image_dim = None only, not 1280"),
        ({"added_kv_proj_dim": 5120}, "added_kv_proj_dim = None only"),
        ({"pos_embed_seq_len": 514}, "pos_embed_seq_len = None only"),
        ({"patch_size": (2, 2)}, r"frames, rows and columns, not \(2, 2\)"),
        ({"attention_head_dim": 15}, "even attention_head_dim of 6 or more, not 15"),
        ({"attention_head_dim": 4}, "even attention_head_dim of 6 or more, not 4"),
        ({"width": 3}, "has no width"),
        ({"remat": "some"}, "remat is one of everything_saveable, dots_with"),
    ]:
        with pytest.raises(UserError, match=message):
            wan_dit.build(**config)
    with pytest.raises(UserError, match="has vace_in_channels, which is not supported"):
        keys.config({"_class_name": "WanVACETransformer3DModel", "vace_in_channels": 96})
    with pytest.raises(UserError, match="has text_length, which is not supported"):
        keys.config({"text_length": 512})
    with pytest.raises(UserError, match="takes 36 channels and predicts 16: only text-to-video"):
        keys.config({"in_channels": 36})


def test_inputs_that_do_not_fit():
    network = wan_dit.build(**SMALL, text_length=LENGTH, rope_max_seq_len=4)
    for sizes, words, message in [
        ((3, 5, 6), 1, r"latents of \(3, 5, 6\) .* do not divide into patches of \(1, 2, 2\)"),
        ((3, 6, 7), 1, "do not divide into patches"),
        ((3, 6, 6), LENGTH + 1, "10 tokens, and this transformer attends to 9"),
        ((5, 6, 6), 1, r"grid of \(5, 3, 3\) tokens exceeds rope_max_seq_len = 4"),
    ]:
        inputs = jnp.ones((1, *sizes, 3)), jnp.ones(1), told(np.ones((1, words, 6)))
        with pytest.raises(UserError, match=message):
            jax.eval_shape(network.apply, shapes(network), *inputs)


MESH = f"""
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from dollar_jax.models import wan_dit
from dollar_jax.sharding import batch_sharding, make_mesh, shard
from dollar_jax.types import Condition

network = wan_dit.build(text_length={LENGTH}, **{SMALL | {"num_layers": 1}})
rng = np.random.default_rng(0)
draw = lambda *shape: rng.normal(size=shape, scale=0.3).astype(np.float32)
params = jax.tree.map(lambda x: draw(*x.shape), jax.eval_shape(network.init, jax.random.key(0)))
batch = draw(2, 3, 6, 10, 3), np.float32([19, 980]), Condition(draw(2, {WORDS}, 6), np.ones((2, {WORDS}), bool))
wanted = jax.jit(network.apply)(params, *batch)
mesh = make_mesh(dict(data=1, fsdp=2, context=2))
with jax.set_mesh(mesh):
    on_mesh = jax.device_put((params, *batch), (shard(params, mesh), *[batch_sharding(mesh)] * 3))
    compiled = jax.jit(network.apply).lower(*on_mesh).compile()
np.testing.assert_allclose(compiled(*on_mesh), wanted, atol=1e-5 * np.abs(wanted).max())
print("f32[1,128,32]" in compiled.as_text())
"""


def test_a_mesh_that_splits_parameters_videos_and_tokens():
    """The same numbers as on one device. The 45 tokens of a video are padded to 256, of which a device has half."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run([sys.executable, "-c", MESH], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
