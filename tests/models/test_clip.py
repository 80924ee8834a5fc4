"""CLIP against transformers' CLIPModel with the same random weights, and from open_clip's format."""

import functools
import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stock
import torch
from compare import relative
from flax import nnx
from restored import restore
from transformers import CLIPConfig, CLIPModel

from dollar_jax.convert import clip as keys
from dollar_jax.convert.tables import convert
from dollar_jax.convert.tensors import open_file
from dollar_jax.errors import UserError
from dollar_jax.models import clip
from dollar_jax.models.network import count_parameters

ACTIVATIONS = ("gelu", "quick_gelu")
VOCABULARY, LENGTH = 50, 11
END = VOCABULARY - 1
SMALL = {
    "projection_dim": 12,
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-3,
        "image_size": 12,
        "patch_size": 4,
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "layer_norm_eps": 1e-2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH,
    },
}
VIT_H_14 = {
    "projection_dim": 1024,
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "patch_size": 14,
    },
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
}
VIT_L_14 = {
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}


def merged(config: dict, vision: dict, text: dict) -> dict:
    """`config` with other fields in its towers."""
    return {
        **config,
        "vision_config": config["vision_config"] | vision,
        "text_config": config["text_config"] | text,
    }


def arrays(tensors) -> dict[str, np.ndarray]:
    return {key: value.detach().numpy() for key, value in tensors.items()}


@functools.cache
def compute(vision_act: str):
    """Both networks with the same weights, and everything that the real one computes on random images and texts.

    The towers have different activations, and either case one of the rules for where a text ends.
    """
    text_act = next(name for name in ACTIVATIONS if name != vision_act)
    end_id = {"gelu": 2, "quick_gelu": END}[vision_act]
    config = merged(SMALL, {"hidden_act": vision_act}, {"hidden_act": text_act, "eos_token_id": end_id})
    torch.manual_seed(0)
    theirs = CLIPModel(CLIPConfig(**config))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 12, 12, 3)).astype(np.float32)
    tokens = rng.integers(0, END, (4, LENGTH))
    for text, end in zip(tokens, (0, 4, 7, LENGTH - 1), strict=True):
        text[end] = END
    tokens[1, 5:] = END  # padding as in CLIP's tokenizer; the others have any
    cotangent = rng.normal(size=(3, 4)).astype(np.float32)
    states = {"vision": [], "text": []}
    for name, tower in (("vision", theirs.vision_model), ("text", theirs.text_model)):
        record = states[name].append
        tower.encoder.layers[0].register_forward_pre_hook(lambda _, args, record=record: record(args[0]))
        for layer in tower.encoder.layers:
            layer.register_forward_hook(
                lambda _, args, result, record=record: record(result[0] if isinstance(result, tuple) else result)
            )
    pixels = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    similarity = theirs(input_ids=torch.tensor(tokens), pixel_values=pixels).logits_per_image
    (similarity * torch.tensor(cotangent)).sum().backward()
    states = {name: [state.detach().numpy() for state in found] for name, found in states.items()}
    with torch.no_grad():
        image = theirs.get_image_features(pixel_values=pixels).pooler_output.numpy()
        text = theirs.get_text_features(input_ids=torch.tensor(tokens)).pooler_output.numpy()

    ours = keys.config(theirs.config.to_dict())
    network, table = clip.build(**ours), keys.table(ours)
    target = jax.eval_shape(network.init, jax.random.key(0))
    return SimpleNamespace(
        config=ours,
        network=network,
        state_dict=arrays(theirs.state_dict()),
        params=convert(table, arrays(theirs.state_dict()), target),
        images=jnp.asarray(images),
        tokens=jnp.asarray(tokens),
        cotangent=cotangent,
        states=states,
        image=image,
        text=text,
        similarity=similarity.detach().numpy(),
        gradients=convert(table, {key: value.grad.numpy() for key, value in theirs.named_parameters()}, target),
        image_gradients=pixels.grad.numpy().transpose(0, 2, 3, 1),
    )


@pytest.fixture(params=ACTIVATIONS)
def case(request):
    return compute(request.param)


def similarity(network, params, images, tokens):
    """As the callers compute it."""
    image = network.apply(params, images, method="encode_image")
    text = network.apply(params, tokens, method="encode_text")
    image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    return jnp.exp(params["logit_scale"]) * image @ text.T


def test_embeddings(case):
    for method, x, wanted in (("encode_image", case.images, case.image), ("encode_text", case.tokens, case.text)):
        assert relative(jax.jit(partial(case.network.apply, method=method))(case.params, x), wanted) < 1e-4


def test_similarity_and_gradients(case):
    @jax.jit
    def run(params, images):
        result, pull = jax.vjp(lambda p, x: similarity(case.network, p, x, case.tokens), params, images)
        return result, *pull(case.cotangent)

    result, gradients, image_gradients = run(case.params, case.images)
    assert relative(result, case.similarity) < 1e-4
    assert relative(image_gradients, case.image_gradients) < 1e-3
    errors = jax.tree.map(relative, gradients, case.gradients)
    for tower in ("vision", "text"):
        # The keys' bias shifts all logits of a query alike, which changes nothing: both gradients are rounding.
        del errors[tower]["blocks"]["key"]["bias"]
        found, wanted = (x[tower]["blocks"]["key"]["bias"] for x in (gradients, case.gradients))
        scale = np.abs(gradients[tower]["blocks"]["query"]["bias"]).max()
        assert max(np.abs(found).max(), np.abs(wanted).max()) < 1e-4 * scale
    assert max(jax.tree.leaves(errors)) < 1e-3, errors


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_every_block(case, tower):
    """The states after each block, when each block continues from our own."""
    module = nnx.eval_shape(lambda: clip.CLIP(clip.read(case.config), jnp.float32, nnx.Rngs(0)))
    graph = nnx.graphdef(getattr(module, tower).blocks)
    bias = clip.causal_bias(LENGTH, 4) if tower == "text" else None
    run = jax.jit(lambda block, x: nnx.merge(graph, block)(x, bias))
    x, *after = case.states[tower]
    assert len(after) == SMALL[f"{tower}_config"]["num_hidden_layers"]
    for layer, wanted in enumerate(after):
        x = run(jax.tree.map(lambda p, layer=layer: p[layer], case.params[tower]["blocks"]), x)
        assert relative(x, wanted) < 1e-4, layer


def test_what_follows_the_end_of_a_text_changes_nothing(case):
    encode = jax.jit(lambda tokens: case.network.apply(case.params, tokens, method="encode_text"))
    text = encode(case.tokens)
    np.testing.assert_array_equal(encode(case.tokens.at[2, 8:].set(3))[2], text[2])
    np.testing.assert_allclose(encode(case.tokens[:, :8])[2], text[2], rtol=1e-4, atol=1e-5)
    assert relative(encode(case.tokens.at[2, 6].set(3))[2], text[2]) > 1e-2


def test_bfloat16_inside_float32_outside(case):
    network = clip.build(dtype=jnp.bfloat16, **case.config)
    for method, x, wanted in (("encode_image", case.images, case.image), ("encode_text", case.tokens, case.text)):
        embedding = jax.jit(partial(network.apply, method=method))(case.params, x)
        assert embedding.dtype == jnp.float32
        assert 1e-4 < relative(embedding, wanted) < 1e-1


def test_back_to_transformers(case):
    """The state dict and a config.json that make the same CLIPModel."""
    back = restore(keys.table(case.config), case.params)
    assert back.keys() == case.state_dict.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, case.state_dict[key], err_msg=key)
    theirs = CLIPModel(CLIPConfig(**json.loads(json.dumps(keys.their_config(case.config)))))
    theirs.load_state_dict({key: torch.tensor(value) for key, value in back.items()})
    with torch.no_grad():
        text = theirs.get_text_features(input_ids=torch.tensor(np.asarray(case.tokens))).pooler_output
    assert relative(text, case.text) < 1e-6
    assert keys.config(theirs.config.to_dict()) == case.config


def test_open_clip_files(tmp_path):
    """A file as HPSv2's."""
    torch.manual_seed(0)
    theirs = stock.OpenClip(VOCABULARY, LENGTH)
    torch.save({"epoch": 1, "state_dict": theirs.state_dict()}, tmp_path / "HPS.pt")
    tensors = open_file(tmp_path / "HPS.pt")
    config = keys.open_clip_config(tensors.shapes)
    network, split = clip.build(**config), keys.split_fused(tensors)
    assert {key: value.shape for key, value in split.items()} == split.shapes
    params = convert(keys.open_clip_table(config), split, jax.eval_shape(network.init, jax.random.key(0)))
    case = compute("gelu")
    with torch.no_grad():
        image = theirs.encode_image(torch.tensor(np.asarray(case.images).transpose(0, 3, 1, 2)))
        text = theirs.encode_text(torch.tensor(np.asarray(case.tokens)))
    for method, x, wanted in (("encode_image", case.images, image), ("encode_text", case.tokens, text)):
        encode = jax.jit(partial(network.apply, method=method))
        assert relative(encode(params, x), wanted) < 1e-4
    assert params["logit_scale"] == theirs.logit_scale.item()


@functools.cache
def public(name: str) -> CLIPModel:
    """A public model without its weights."""
    with torch.device("meta"):
        return CLIPModel(CLIPConfig(**{"H": VIT_H_14, "L": VIT_L_14}[name]))


@pytest.mark.parametrize(("name", "total"), [("H", 986_109_441), ("L", 427_616_513)])
def test_sizes_of_the_public_models(name, total):
    theirs = public(name)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == total
    config = keys.config(theirs.config.to_dict())
    params = jax.eval_shape(clip.build(**config).init, jax.random.key(0))
    assert count_parameters(params) == total


def test_config_of_open_clip_from_shapes():
    """ViT-H-14, whose heads in the vision tower are 80 wide."""
    shapes = {"visual.conv1.weight": (1280, 3, 14, 14), "visual.positional_embedding": (257, 1280)}
    shapes |= {"visual.proj": (1280, 1024), "token_embedding.weight": (49408, 1024), "positional_embedding": (77, 1024)}
    shapes |= {f"visual.transformer.resblocks.{layer}.mlp.c_fc.weight": (5120, 1280) for layer in range(32)}
    shapes |= {f"transformer.resblocks.{layer}.mlp.c_fc.weight": (4096, 1024) for layer in range(24)}
    assert keys.open_clip_config(shapes) == keys.config(public("H").config.to_dict())
    shapes["transformer.resblocks.0.mlp.c_fc.weight"] = (5120, 1280)
    heads = [keys.open_clip_config(shapes)[tower]["num_attention_heads"] for tower in ("vision_config", "text_config")]
    assert heads == [16, 20]  # the text tower of bigG is as wide
    shapes["transformer.resblocks.0.mlp.c_fc.weight"] = (400, 100)
    with pytest.raises(UserError, match="resblocks is 100 wide"):
        keys.open_clip_config(shapes)
    del shapes["visual.proj"], shapes["token_embedding.weight"]
    with pytest.raises(UserError, match=r"lacks visual.proj, token_embedding.weight: is it a ViT of open_clip\?"):
        keys.open_clip_config(shapes)


def test_configs_of_old_and_new_files():
    """New ones leave out what is at its default; in old ones the sizes are also, and first, in a second dict."""
    assert keys.config({"vision_config": {}, "text_config": {}}) == keys.config(CLIPConfig().to_dict())
    old = {"text_config": {"hidden_size": 64, "num_hidden_layers": 5}, "text_config_dict": {"hidden_size": 128}}
    old["vision_config"] = {"patch_size": 16}
    ours = keys.config({**old, "vision_config_dict": None})
    assert ours == keys.config(CLIPConfig(**old).to_dict())
    assert ours["text_config"]["hidden_size"] == 128


def test_embeddings_of_a_random_network_differ():
    network = clip.build(**SMALL)
    params = jax.jit(network.init)(jax.random.key(0))
    case = compute("gelu")
    cosine = jax.jit(partial(similarity, network))(params | {"logit_scale": 0.0}, case.images, case.tokens)
    assert np.abs(cosine).max() < 0.99
    assert cosine.std() > 0.05


def test_user_errors(case):
    with pytest.raises(UserError, match="clip has no depth; see Config"):
        clip.build(depth=3)
    with pytest.raises(UserError, match="clip's text_config has no dropout; see Text"):
        clip.build(text_config={"dropout": 0.1})
    with pytest.raises(UserError, match="hidden_act = gelu or quick_gelu, not 'relu'"):
        clip.build(text_config={"hidden_act": "relu"})
    with pytest.raises(UserError, match="hidden_size = 30 does not divide by 8 heads"):
        clip.build(text_config={"hidden_size": 30})
    with pytest.raises(UserError, match="image_size = 225"):
        clip.build(vision_config={"image_size": 225})
    with pytest.raises(UserError, match=r"images of 12 x 12, not \(12, 16\)"):
        case.network.apply(case.params, jnp.zeros((1, 12, 16, 3)), method="encode_image")
    with pytest.raises(UserError, match="at most 11 tokens, not 12"):
        case.network.apply(case.params, jnp.zeros((1, 12), int), method="encode_text")
    with pytest.raises(UserError, match=r"lacks vision_config, text_config: is it a CLIPModel\?"):
        keys.config({"d_model": 512})
    theirs = {"vision_config": {}, "text_config": {}}
    for vision, text, match in (
        ({"num_channels": 4}, {}, "num_channels = 4: only 3"),
        ({}, {"eos_token_id": 7}, "eos_token_id = 7: only the last token, 49407"),
        ({}, {"hidden_act": "silu"}, "hidden_act = gelu or quick_gelu, not 'silu'"),
    ):
        with pytest.raises(UserError, match=match):
            keys.config(merged(theirs, vision, text))
