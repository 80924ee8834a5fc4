"""One iteration of the full DOLLAR step on a mesh, in a process of its own.

    python one_iteration.py OUT.npz DATA,FSDP,CONTEXT [COORDINATOR PROCESSES PROCESS]

Everything that training changes, and the metrics, are written by path. The networks are small; no context axis divides
the tokens.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

sys.path.insert(0, str(Path(__file__).parents[2]))

from configs.shapes import get_config
from dollar_jax.models import build
from dollar_jax.sharding import batch_sharding, data_share, local_rows, make_mesh, replicated, shard
from dollar_jax.stages.distill import make_setup, make_steps
from dollar_jax.steps import dollar
from dollar_jax.train import initialize, place

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
CARD = {"prediction_type": "v", "schedule": {"kind": "ddpm"}}
BATCH_SIZE, FRAMES, TEXT_TOKENS = 8, 3, 5  # 5 + 3 x 2 x 2 tokens


def get_setup():
    config = get_config()
    config.dtype, config.remat = "float32", "nothing_saveable"
    config.fake_score.updates = 5
    config.generator.update({"batch_size": BATCH_SIZE, "accumulate": 1})
    config.generator.options.consistency.guidance = 2.0
    for part in (config.generator, config.fake_score, config.reward):
        part.optimizer.update({"warmup": 0, "learning_rate": 2e-5})
    return make_setup(config, CARD, build("cogvideox_dit", SIZES), (TEXT_TOKENS, SIZES["text_embed_dim"]))


def random_params(network, seed: int) -> dict:
    """Parameters of which none is zero, so that no gradient is only rounding."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), shapes)


def iterate(mesh) -> dict[str, np.ndarray]:
    """Generator, five fake scores, reward model."""
    setup, key = get_setup(), jax.random.key(0)
    config = setup.config

    def on_mesh(tree):
        def put(x, sharding):
            return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

        return jax.tree.map(put, tree, shard(tree, mesh))

    teacher, fake_score = (on_mesh(random_params(setup.network, seed)) for seed in (0, 1))
    state = initialize(setup.init, mesh, teacher, key)
    state = state.replace(fake_score=fake_score, reward_model=on_mesh(random_params(setup.reward_network, 2)))

    rng, hands = np.random.default_rng(0), 1 + config.fake_score.updates
    size = hands * BATCH_SIZE
    drawn = {
        "latents": rng.normal(size=(size, FRAMES, 4, 4, 4)).astype(np.float32),
        "text": rng.normal(size=(size, TEXT_TOKENS, 8)).astype(np.float32),
        "text_mask": np.ones((size, TEXT_TOKENS), bool),
    }
    index, count = data_share(mesh)
    rows = slice(index * size // count, (index + 1) * size // count)
    deal = jax.jit(partial(dollar.deal, hands=hands), out_shardings=batch_sharding(mesh))
    batch, *others = deal(place({name: value[rows] for name, value in drawn.items()}, mesh))
    steps = make_steps(setup, state, mesh)
    frozen = {"teacher": teacher, "null_text": np.zeros((1, TEXT_TOKENS, 8), np.float32)}

    state, metrics = steps["generator"](state, frozen, batch, jax.random.fold_in(key, 1))
    for index, other in enumerate(others):
        state, extra = steps["fake_score"](state, {}, other, jax.random.fold_in(key, 3 + index))
        metrics |= extra
    proposed = steps["propose"](state, batch, jax.random.fold_in(key, 2))
    reward = place({"reward": local_rows(proposed["latents"]).mean((1, 2, 3, 4))}, mesh)
    state, extra = steps["reward"](state, {}, proposed | reward, key)
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    paths = jax.tree_util.tree_flatten_with_path(gather({"state": vars(state), "metrics": metrics | extra}))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in paths}


if __name__ == "__main__":
    out, sizes, *others = sys.argv[1:]
    if others:
        from dollar_jax.distributed import start

        start(others[0], int(others[1]), int(others[2]))
    sizes = dict(zip(("data", "fsdp", "context"), map(int, sizes.split(",")), strict=True))
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        result = iterate(mesh)
    if jax.process_index() == 0:
        np.savez(out, **result)
    if others:
        multihost_utils.sync_global_devices("written")
