"""A fork's rewards, and what a config's reward may do wrong."""

import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dollar_jax.errors import UserError
from dollar_jax.rewards.brightness import brightness
from dollar_jax.rewards.judge import Judge

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 5, 8, 12, 3), np.uint8)
CAPTIONS = ["a", "b", "c"]
FORK = '''
    """Rewards of a fork, one of which is in PyTorch."""

    import threading
    import time

    import jax
    import numpy as np
    import torch

    def redness(frames, captions, power=1.0):
        layer = torch.nn.Linear(3, 1)
        torch.nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight[:] = torch.tensor([[1.0, 0.0, 0.0]])
        return layer(torch.tensor(frames)).squeeze(-1).mean((1, 2, 3)).detach() ** power

    def forgot_to_detach(frames, captions):
        return torch.ones(len(captions), requires_grad=True)

    def first_pixel(frames, captions):
        return frames[:, :, 0, 0, 0].sum(1)

    def raises(frames, captions):
        return np.linalg.norm(frames, axis=9)

    def leaves(frames, captions):
        raise SystemExit(3)

    def not_finite(frames, captions):
        return [0.5, float("nan"), float("inf")]

    def one_for_all(frames, captions):
        return frames.mean()

    def a_dict(frames, captions):
        return {"reward": 1}

    def hangs(frames, captions):
        time.sleep(60)

    class Scaled:
        """Differentiable, with weights."""

        def __init__(self, scale):
            if scale < 0:
                raise ValueError("a negative scale")
            self.params = {"scale": np.float32(scale)}

        def prepare(self, captions):
            return {"length": np.array([len(caption) for caption in captions], np.float32)}

        def score(self, frames, prepared, params):
            return params["scale"] * frames.mean((1, 2, 3, 4)) * prepared["length"]

    class Empty:
        pass

    def words(frames, captions):
        return ["0.5"] * len(captions)
'''


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Makes the judge of a reward of the fork, whose file lies outside the package."""
    (tmp_path / "fork_of_rewards.py").write_text(textwrap.dedent(FORK))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fork_of_rewards", raising=False)

    def make(name, **fields):
        return Judge({"name": f"fork_of_rewards:{name}", **fields})

    return make


def test_a_function_in_pytorch(judge):
    red = FRAMES[..., 0].mean((1, 2, 3)) / 255
    values = judge("redness")(FRAMES, CAPTIONS)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, red, rtol=1e-5)
    np.testing.assert_allclose(judge("redness", options={"power": 2.0})(FRAMES, CAPTIONS), red**2, rtol=1e-5)


def test_a_config_of_the_project():
    config = ConfigDict({"name": "brightness", "options": {}, "architecture": "latent_reward", "batch_size": 16})
    judge = Judge(config)
    assert not judge.differentiable
    np.testing.assert_array_equal(judge(FRAMES, CAPTIONS), brightness(FRAMES / np.float32(255), CAPTIONS))
    with pytest.raises(UserError, match=r"reward brightness has no gradient \(no prepare and score\)"):
        judge.prepare(CAPTIONS)
    with pytest.raises(UserError, match="has no gradient"):
        judge.score(jnp.zeros((1, 1, 2, 2, 3)), {})


@pytest.mark.parametrize(("count", "seen"), [(0, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (2, [0, 4]), (9, [0, 1, 2, 3, 4])])
def test_some_of_the_frames(judge, count, seen):
    values = judge("first_pixel", frames=count)(FRAMES, CAPTIONS)
    np.testing.assert_allclose(values, FRAMES[:, seen, 0, 0, 0].sum(1) / 255, rtol=1e-5)


def test_a_gradient(judge):
    reward = judge("Scaled", options={"scale": 3.0}, frames=2)
    assert reward.differentiable
    captions, lengths = ["a", "bb", "ccc"], np.array([1, 2, 3])
    wanted = 3 * lengths * FRAMES[:, [0, -1]].mean((1, 2, 3, 4)) / 255
    np.testing.assert_allclose(reward(FRAMES, captions), wanted, rtol=1e-5)
    prepared, frames = reward.prepare(captions), jnp.asarray(FRAMES / np.float32(255))
    assert isinstance(prepared["length"], np.ndarray)
    gradient = jax.jit(jax.grad(lambda x, params: reward.score(x, prepared, params).sum()))
    seen = np.array([1, 0, 0, 0, 1]) / (2 * 8 * 12 * 3)
    wanted = np.broadcast_to((3 * lengths[:, None] * seen)[..., None, None, None], FRAMES.shape)
    np.testing.assert_allclose(gradient(frames, reward.params), wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient(frames, {"scale": 1.0}), wanted / 3, rtol=1e-5)
    np.testing.assert_allclose(reward.score(frames, prepared), reward(FRAMES, captions), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", r":raises raised AxisError: axis 9 is out of .* \(fork_of_rewards.py, line 25\): fix it there"),
        ("leaves", r"raised SystemExit: 3 \(fork_of_rewards.py, line 28\): fix it there"),
        ("not_finite", "returned nan for 2 of 3 videos, first for 'b': return finite numbers"),
        ("one_for_all", r"returned a float32 of shape \(\), wanted \(3,\): one number for each video"),
        ("a_dict", "returned a dict, wanted numbers: TypeError"),
        ("words", "returned a list, wanted numbers: TypeError: it is text"),
        ("forgot_to_detach", r"returned a Tensor, wanted numbers: RuntimeError: Can't call numpy\(\)"),
        ("hangs", "reward fork_of_rewards:hangs took longer than 0.5 s: make it faster, or raise reward.timeout"),
    ],
)
def test_faults(judge, name, words):
    reward, start = judge(name, timeout=0.5 if name == "hangs" else 0), time.monotonic()
    with pytest.raises(UserError, match=words) as caught:
        reward(FRAMES, CAPTIONS)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("missing", {}, "fork_of_rewards:missing: the module fork_of_rewards has no function 'missing'"),
        ("Empty", {}, "reward fork_of_rewards:Empty has neither __call__ nor prepare and score"),
        ("redness", {"options": {"force": 2}}, "its options do not fit .*'force'"),
        ("Scaled", {}, r"its options do not fit \(missing a required argument: 'scale'\)"),
        ("Scaled", {"options": {"scale": -1}}, r"raised ValueError: a negative scale \(fork_of_rewards.py, line 47\)"),
        ("redness", {"frames": -1}, "frames and timeout are 0 or more"),
    ],
)
def test_refused_before_the_first_step(judge, name, fields, words):
    with pytest.raises(UserError, match=words):
        judge(name, **fields)


def test_a_name_that_leads_nowhere():
    with pytest.raises(UserError, match=r"reward of_nobody: there is no module 'dollar_jax\.rewards\.of_nobody'"):
        Judge({"name": "of_nobody"})


def test_a_mesh_is_nothing_to_a_reward(judge):
    """Each process has its own videos: under a mesh the reward must not become a program of all devices."""
    mesh = jax.make_mesh((1,), ("data",))
    with jax.set_mesh(mesh):
        values = judge("Scaled", options={"scale": 3.0})(FRAMES, CAPTIONS)
    np.testing.assert_allclose(values, 3 / 255 * FRAMES.mean((1, 2, 3, 4)), rtol=1e-5)
