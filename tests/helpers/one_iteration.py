"""One iteration of a distillation on a mesh, perhaps of several processes.

    python one_iteration.py NETWORK FILE DATA,FSDP,CONTEXT [COORDINATOR PROCESSES PROCESS]

Everything that training changes, and the metrics, are written by path into FILE. NETWORK is `dit`, a small transformer
whose tokens no context axis divides, with VSD alone, one time for all examples of the generator, and one chain for both
updates of the fake score; or `toy`, the toy family's, which compiles sooner, with all of DOLLAR and adversarial.
"""

import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

sys.path.insert(0, str(Path(__file__).parents[2]))

import toy_family

from configs.shapes import get_config
from dollar_jax.config import set_named
from dollar_jax.distributed import start
from dollar_jax.importing import trust
from dollar_jax.models import build
from dollar_jax.sharding import batch_sharding, data_share, local_rows, make_mesh, replicated, shard
from dollar_jax.stages.distill import make_setup
from dollar_jax.steps import dollar
from dollar_jax.steps.iteration import PROPOSALS, batches_drawn, compiled, parts
from dollar_jax.train import initialize, place
from dollar_jax.types import Condition

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 8,
    "num_layers": 2,
    "use_rotary_positional_embeddings": True,
}
BATCH_SIZE, FRAMES, TEXT_TOKENS = 4, 3, 5  # 5 + 3 x 2 x 2 tokens
CHANNELS, TEXT_WIDTH = {"dit": 4, "toy": toy_family.CHANNELS}, {"dit": 8, "toy": 5}
CARD = {"prediction_type": "v", "schedule": {"kind": "ddpm"}}


def get_setup(name: str):
    config = get_config()
    config.dtype, config.remat = "float32", "nothing_saveable"
    config.fake_score.update({"updates": 2, "updates_per_rollout": 2 if name == "dit" else 1})
    config.generator.update({"batch_size": BATCH_SIZE, "accumulate": 1, "shared_time": name == "dit"})
    config.generator.objectives.consistency.guidance = 2.0
    for part in (config.generator, config.fake_score, config.reward):
        part.optimizer.update({"warmup": 0, "learning_rate": 2e-5})
    config.reward.network.channels = CHANNELS[name]
    transformer = {"architecture": "cogvideox_dit", "config": SIZES}
    if name == "dit":
        set_named(config.generator.objectives, {"consistency": 0.0, "latent_reward": 0.0})
    else:
        trust(["toy_family"])
        transformer = {"architecture": "toy_family:transformer", "config": {"width": 8}}
        own = {"network": {"width": 8}, "optimizer": config.fake_score.optimizer.to_dict()}
        set_named(config.generator.objectives, {"adversarial": {"weight": 0.1, "own": own}})
    card = CARD | {"latent_shape": [FRAMES, 4, 4, CHANNELS[name]], "transformer": transformer}
    network = build(transformer["architecture"], transformer["config"])
    return make_setup(config, card, network, told(name, 1, np.zeros))


def told(name: str, size: int, draw: Callable) -> Condition:
    """The condition of captions whose embeddings `draw` makes from a shape."""
    extra = {"pooled": draw((size, 3)).astype(np.float32)}
    embedding = draw((size, TEXT_TOKENS, TEXT_WIDTH[name])).astype(np.float32)
    return Condition(embedding, np.ones((size, TEXT_TOKENS), bool), extra)


def random_params(network, seed: int) -> dict:
    """Parameters of which none is zero, so that no gradient is only rounding."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), shapes)


def iterate(name: str, mesh) -> dict[str, np.ndarray]:
    """Generator, two fake scores; of the toys also discriminator and reward model."""
    setup, key = get_setup(name), jax.random.key(0)
    config = setup.config

    def on_mesh(tree):
        def put(x, sharding):
            return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

        return jax.tree.map(put, tree, shard(tree, mesh))

    teacher, fake_score = (on_mesh(random_params(setup.network, seed)) for seed in (0, 1))
    state = initialize(setup.init, mesh, teacher, key)
    own = {key: on_mesh(random_params(network, 3)) for key, network in setup.own.items()}
    state = state.replace(fake_score=fake_score, own=own, reward_model=on_mesh(random_params(setup.reward_network, 2)))

    rng, drawn_batches = np.random.default_rng(0), batches_drawn(config, setup.needs)
    size = drawn_batches * BATCH_SIZE
    drawn = {
        "latents": rng.normal(size=(size, *setup.latent_shape)).astype(np.float32),
        "condition": told(name, size, lambda shape: rng.normal(size=shape)),
    }
    index, count = data_share(mesh)
    rows = slice(index * size // count, (index + 1) * size // count)
    split = jax.jit(partial(dollar.split_batch, parts=drawn_batches), out_shardings=batch_sharding(mesh))
    batch, *fresh = split(place(jax.tree.map(lambda x: x[rows], drawn), mesh))
    nothing = told(name, 1, np.zeros)
    frozen = {"teacher": teacher, "negative": nothing, "empty": nothing}
    metrics = {}
    for part in compiled(parts(setup), state, mesh):
        for index in range(part.times):
            given = fresh.pop(0) if part.batch == "fresh" else batch
            if part.propose:
                given = part.propose(state, frozen, given, part.key(key, 0, stream=PROPOSALS))
                given |= place({"reward": local_rows(given.pop("scored"))[:, 0, 0, 0, 0]}, mesh)
            state, extra = part.step(state, frozen, given, part.key(key, 0, index))
            metrics |= extra
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    paths = jax.tree_util.tree_flatten_with_path(gather({"state": vars(state), "metrics": metrics}))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in paths}


if __name__ == "__main__":
    gc.disable()
    name, file, sizes, *place_of = sys.argv[1:]
    if place_of:
        start(place_of[0], *map(int, place_of[1:]))
    mesh = make_mesh(dict(zip(("data", "fsdp", "context"), map(int, sizes.split(",")), strict=True)))
    with jax.set_mesh(mesh):
        result = iterate(name, mesh)
    if jax.process_index() == 0:
        np.savez(file, **result)
    multihost_utils.sync_global_devices("written")
