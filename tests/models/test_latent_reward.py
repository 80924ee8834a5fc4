"""The latent reward models against the tables of the paper, whose layers the tests repeat in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import toy
from torch.nn import functional

from dollar_jax.errors import UserError
from dollar_jax.models import latent_reward
from dollar_jax.models.network import count_parameters
from dollar_jax.types import Condition

TEXT_WIDTH, WORDS = 12, 5


def random_params(network):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), leaf.dtype), shapes)


def build(**config):
    network = latent_reward.build(channels=4, **config)
    return jax.jit(network.apply), random_params(network)


@pytest.fixture
def latents():
    """Two videos of 3 frames of 24 x 40, the paper's size."""
    return np.random.default_rng(1).normal(size=(2, 3, 24, 40, 4)).astype(np.float32)


@pytest.fixture
def text():
    return np.random.default_rng(2).normal(size=(2, WORDS, TEXT_WIDTH)).astype(np.float32)


def linear(x, layer):
    return x @ layer["kernel"] + layer.get("bias", 0)


def image_features(params, image):
    """Both tables, from the input to Flatten: [b h w c] -> [b 128], and the sizes on the way."""
    x, sizes = image.movedim(-1, 1), []
    for name, stride in (("reduce", 4), ("refine", 2)):
        kernel = params[name]["kernel"].movedim((-1, -2), (0, 1))
        x = functional.conv2d(x, kernel, params[name]["bias"], stride=stride, padding=1)
        norm = params.get(f"{name}_norm", {})
        x = functional.silu(functional.group_norm(x, latent_reward.GROUPS, norm.get("scale"), norm.get("bias")))
        sizes.append(tuple(x.shape[1:]))
    x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
    return linear(x, params["mix"]), sizes


def table_13(params, image, text, literal: bool):
    """The reward of one frame. To the letter, the text is pooled to one token and nothing is added to what it gives."""
    feature, _ = image_features(params, image)
    norm = params["text_norm"]
    tokens = functional.layer_norm(linear(text, params["text_project"]), (128,), norm["scale"], norm["bias"], eps=1e-6)
    tokens = functional.silu(tokens)
    if literal:
        tokens = tokens.mean(1, keepdim=True)
    query, key, value = (
        linear(x, params[name]) for name, x in (("query", feature[:, None]), ("key", tokens), ("value", tokens))
    )
    attended = (torch.softmax(query @ key.mT / 128**0.5, dim=-1) @ value)[:, 0]
    return linear(attended if literal else feature + attended, params["head"])[:, 0]


def told(text, mask=None):
    """The condition of these embeddings, all tokens real if no mask is given."""
    return Condition(jnp.asarray(text), jnp.asarray(np.ones(text.shape[:2], bool) if mask is None else mask))


def in_torch(tree):
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x)), tree)


@pytest.mark.parametrize(("config", "count"), [({}, 189_441), ({"text_width": 4096}, 763_009)])
def test_parameters(config, count):
    network = latent_reward.build(**config)
    assert count_parameters(jax.eval_shape(network.init, jax.random.key(0))) == count


def test_table_12(latents):
    apply, params = build()
    feature, sizes = image_features(in_torch(params), torch.tensor(latents[:, 0]))
    assert sizes == [(128, 6, 10), (128, 3, 5)]
    expected = linear(feature, in_torch(params)["head"])[:, 0]
    np.testing.assert_allclose(apply(params, latents[:, :1], toy.condition(2)), expected, rtol=1e-4, atol=1e-5)


def test_table_13(latents, text):
    """To the letter, its reward is one of the text alone. Ours is the same parameters, and sees the latents."""
    apply, params = build(text_width=TEXT_WIDTH)
    gradients, rewards = {}, {}
    for literal in (True, False):
        image = torch.tensor(latents[:, 0], requires_grad=True)
        reward = table_13(in_torch(params), image, torch.tensor(text), literal)
        reward.sum().backward()
        rewards[literal], gradients[literal] = reward.detach().numpy(), image.grad.numpy()
    assert np.all(gradients[True] == 0)
    assert np.abs(gradients[False]).max() > 1e-4

    gradient = jax.grad(lambda x: apply(params, x, told(text)).sum())(latents[:, :1])
    np.testing.assert_allclose(apply(params, latents[:, :1], told(text)), rewards[False], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], gradients[False], atol=1e-3 * np.abs(gradients[False]).max())


def test_padding_is_not_read(latents, text):
    apply, params = build(text_width=TEXT_WIDTH)
    mask = np.arange(WORDS)[None] < np.array([[2], [4]])
    reward = apply(params, latents, told(text, mask))
    other = np.where(mask[:, :, None], text, 7.0)
    np.testing.assert_allclose(apply(params, latents, told(other, mask)), reward, rtol=1e-5)
    np.testing.assert_allclose(apply(params, latents[:1], told(text[:1, :2])), reward[:1], rtol=1e-5)
    assert np.abs(apply(params, latents, told(text)) - reward).min() > 1e-3
    assert np.isfinite(apply(params, latents, told(text, np.zeros_like(mask)))).all()


@pytest.mark.parametrize("config", [{}, {"text_width": TEXT_WIDTH}])
def test_the_reward_of_a_video_is_the_mean_over_its_frames(latents, text, config):
    apply, params = build(**config)
    frames = [apply(params, latents[:, i : i + 1], told(text)) for i in range(3)]
    assert np.std(frames, axis=0).min() > 1e-3
    np.testing.assert_allclose(apply(params, latents, told(text)), np.mean(frames, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [{}, {"text_width": TEXT_WIDTH}])
def test_a_3d_backbone_sees_the_order_of_frames(latents, text, config):
    apply, params = build(backbone="3d", **config)
    reward = apply(params, latents, told(text))
    assert reward.shape == (2,)
    assert np.abs(apply(params, latents[:, ::-1], told(text)) - reward).min() > 1e-2
    assert apply(params, latents[:, :1], told(text)).shape == (2,)


def test_an_image_reward_ignores_the_text(latents, text):
    apply, params = build()
    np.testing.assert_array_equal(apply(params, latents, told(text)), apply(params, latents, told(text + 1)))


def test_user_errors():
    with pytest.raises(UserError, match="backbone is 2d or 3d, not '4d'"):
        latent_reward.build(backbone="4d")
