import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dollar_jax.errors import UserError
from dollar_jax.rewards.brightness import brightness
from dollar_jax.rewards.judge import Judge

FRAMES = np.random.default_rng(0).random((2, 4, 6, 6, 3), np.float32)
CAPTIONS = ["a red ring moving left", "a blue ring moving left"]
BRIGHT = {"name": "brightness", "weight": 2.0, "frames": 1}
BORDER = {"name": "dollar_jax.rewards.shapes_world:BorderBrightness", "weight": -0.5, "options": {"width": 3}}
COLOUR = {"name": "dollar_jax.rewards.shapes_world:CaptionColour", "weight": 3}


def make(convert=dict, **terms):
    return Judge(convert({"name": "weighted_sum", "options": {"terms": terms}}))


@pytest.mark.parametrize("convert", [dict, ConfigDict])
def test_the_sum_of_terms(convert):
    judge = make(convert, bright=BRIGHT, border=BORDER)
    bright, border = brightness(FRAMES[:, :1], CAPTIONS), FRAMES.mean((1, 2, 3, 4))  # a border that leaves no middle
    np.testing.assert_allclose(judge(FRAMES, CAPTIONS), 2 * bright - 0.5 * border, rtol=1e-5)
    assert not judge.differentiable


def test_the_gradient_when_all_terms_have_one():
    judge, terms = make(border=BORDER, colour=COLOUR), [Judge({**BORDER, "weight": 0}), Judge(COLOUR)]
    assert judge.differentiable

    def gradient(judge):
        prepared = judge.prepare(CAPTIONS)
        score = lambda x, params: judge.score(x, prepared, params).sum()  # noqa: E731
        return jax.jit(jax.grad(score))(jnp.asarray(FRAMES), judge.params)

    border, colour = (gradient(term) for term in terms)
    assert np.abs(border).max() > 0
    assert np.abs(colour).max() > 0
    np.testing.assert_allclose(gradient(judge), 3 * colour - 0.5 * border, rtol=1e-4, atol=1e-8)


def test_user_errors():
    with pytest.raises(UserError, match="reward weighted_sum: a weighted sum has at least one term"):
        make()
    with pytest.raises(UserError, match="the term bright has no field 'wight'"):
        make(bright={"name": "brightness", "wight": 1})
    with pytest.raises(UserError, match="the term bright lacks its weight"):
        make(bright={"name": "brightness"})
    with pytest.raises(UserError, match="reward weighted_sum: reward brightness: its options do not fit"):
        make(bright={**BRIGHT, "options": {"gamma": 2}})
