"""The steps with adapters: their losses are those of the merged weights, their gradients those of the chain rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import toy_adapted
from merged import merge

from configs.shapes import get_config
from dollar_jax import diffusion
from dollar_jax.config import set_named
from dollar_jax.models import lora
from dollar_jax.steps import dollar
from dollar_jax.steps.distillation import Distillation

NETWORK, ALPHA = toy_adapted.transformer(), 3.0
BASE = NETWORK.init(jax.random.key(5))
OBJECTIVES = {
    "variational_score": {"weight": 1.0, "guidance": 1.0},
    "consistency": {"weight": 0.5, "target": "ema"},
    "continuous_consistency": {"weight": 0.1, "warmup": 0},
    "draft": {"weight": 0.1, "steps": 2},
    "policy_gradient": 0.1,
    "start_divergence": 0.1,
}
FROZEN = {
    "teacher": BASE,
    "negative": toy.condition(1, 3, 2),
    "empty": toy.condition(1, 3, 2),
    "vae": {},
    "reward": {},
}


def setup(rank):
    config = get_config()
    config.lora.update({"rank": rank, "alpha": ALPHA, "targets": ("expand", "contract")})
    set_named(config.generator.objectives, OBJECTIVES | {"latent_reward": 0.0})
    for part in (config.generator, config.fake_score):
        part.optimizer.update({"warmup": 0, "learning_rate": 1e-3})
    return Distillation(
        NETWORK,
        toy.REWARD_MODEL,
        "conjugate",
        diffusion.ddpm_schedule(),
        config,
        toy.LATENT_SHAPE,
        decode=lambda params, latents: jnp.tanh(latents[..., :3]),
        pixel_reward=lambda frames, prepared, params: frames.mean((1, 2, 3, 4)) * prepared,
    )


def adapter(seed, rank=2):
    fresh = lora.init(BASE, ("expand", "contract"), rank, jax.random.key(seed))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(seed), x.shape), fresh)


def run(rank, trained, start):
    """The metrics of a step of the fake score and of one of the student, both from `trained`; the state after them."""
    this, frozen = setup(rank), FROZEN | {"start": start}
    state = this.init(BASE, jax.random.key(0)).replace(**trained)
    batch = toy.batch() | {"prepared": jnp.array([1.0, 2.0, -1.0, 0.5]), "prompt": jnp.arange(4)}
    chain = jax.jit(dollar.make_trajectory(this))(state, frozen, batch, jax.random.key(2))
    chain["reward"] = chain.pop("scored").mean((1, 2, 3, 4))
    state, fake = jax.jit(dollar.make_fake_score_step(this))(state, frozen, toy.batch(), jax.random.key(3))
    before = state.replace(fake_score=trained["fake_score"])
    after, metrics = jax.jit(dollar.make_generator_step(this))(before, frozen, chain, jax.random.key(1))
    return metrics | fake, after.replace(fake_score=state.fake_score)


def test_every_loss_is_that_of_the_merged_weights():
    adapters = {name: adapter(seed) for seed, name in enumerate(("student", "ema", "fake_score"), 1)}
    merged = {name: merge(BASE, tree, ALPHA) for name, tree in adapters.items()}
    start = adapter(4)
    (got, after), (wanted, _) = run(2, adapters, start), run(0, merged, merge(BASE, start, ALPHA))
    losses = {name for name in wanted if name.startswith("loss/")}
    assert losses == {f"loss/{name}" for name in (*OBJECTIVES, "fake_score")}
    for name in losses:
        assert float(got[name]) == pytest.approx(float(wanted[name]), rel=1e-5), name
    for name, tree in adapters.items():
        moved = jax.tree.map(lambda old, new: not np.array_equal(old, new), tree, getattr(after, name))
        assert jax.tree.all(moved)


def test_gradients_are_those_of_the_chain_rule():
    """For W + s A B: dA = s dW B^T, dB = s A^T dW."""
    this, full, mine = setup(2), setup(0), adapter(1)
    merged, batch = merge(BASE, mine, ALPHA), toy.batch()
    keys = jax.random.split(jax.random.key(0), 4)

    def loss(setup, params):
        return (setup.generate(setup.whole(params, FROZEN), batch, keys)[0] ** 2).sum()

    got = jax.jit(jax.grad(lambda params: loss(this, params)))(mine)
    wanted = jax.jit(jax.grad(lambda params: loss(full, params)))(merged)
    for layer, (a, b) in {
        name: (mine[name]["lora_a"], mine[name]["lora_b"]) for name in ("expand", "contract")
    }.items():
        d = wanted[layer]["kernel"]
        np.testing.assert_allclose(got[layer]["lora_a"], ALPHA / 2 * d @ b.T, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(got[layer]["lora_b"], ALPHA / 2 * a.T @ d, rtol=1e-3, atol=1e-4)
