"""The loop of every stage: batches in, updates, checkpoints, log. A second call goes on where the first stopped."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax.checkpoint import Checkpoints
from dollar_jax.files import write_atomically
from dollar_jax.metrics import Logger
from dollar_jax.sharding import batch_sharding, replicated, shard

Update = Callable[[Any, dict, list[str]], tuple[Any, dict]]


def initialize(init: Callable, mesh: Mesh, *args):
    """The state `init(*args)`, born in its shardings."""
    shardings = shard(jax.eval_shape(init, *args), mesh)
    return jax.jit(init, out_shardings=shardings)(*args)


def compile_step(step: Callable, state, mesh: Mesh) -> Callable:
    """`step(state, ...) -> (state, metrics)`, jitted once with the state donated and its shardings pinned."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch as arrays over the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def train(
    folder: Path,
    state,
    update: Update,
    batches: grain.DatasetIterator,
    config: ConfigDict,
    mesh: Mesh,
    show: Callable[[Any], tuple[np.ndarray, list[str]]] | None = None,
):
    """Runs a stage to its end and returns the final state.

    Args:
      folder: checkpoints, log and events go here.
      state: a dataclass of arrays in their shardings.
      update: (state, batch on the mesh, captions) -> (state, metrics). Its randomness comes from `state.step`.
      batches: dicts of arrays, with captions as strings under 'caption'.
      config: iterations; save_every, keep: checkpoints; log_every; show_every, 0 for never.
      show: (state) -> (frames uint8 [n f h w 3], captions) for the log.
    """
    checkpoints = Checkpoints(folder, config.keep)
    start = checkpoints.latest or 0
    if checkpoints.latest is not None:
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), vars(state))
        state = state.replace(**checkpoints.restore(target, batches))
    if start < config.iterations:
        _describe(folder, vars(state))
    with Logger(folder, folder.name, config.iterations, start, config.log_every) as log:
        for step in range(start, config.iterations):
            batch = dict(next(batches))
            captions = [str(caption) for caption in batch.pop("caption")]
            state, metrics = update(state, place(batch, mesh), captions)
            log.log(step, metrics)
            done = step + 1
            if done % config.save_every == 0 or done == config.iterations:
                checkpoints.save(done, vars(state), batches)
            if show and config.show_every and (done % config.show_every == 0 or done == config.iterations):
                log.videos(done, "samples", *show(state))
    checkpoints.close()
    return state


def _describe(folder: Path, state: Mapping) -> None:
    """Says how large each network is, and leaves the table of all parameters in `parameters.txt`."""
    networks = {name: tree for name, tree in state.items() if isinstance(tree, dict) and name != "optimizers"}
    tables = {
        name: parameter_overview.get_parameter_overview(tree, include_stats=False) for name, tree in networks.items()
    }
    write_atomically(folder / "parameters.txt", "".join(f"{name}\n{table}\n\n" for name, table in tables.items()))
    sizes = ", ".join(f"{name} {parameter_overview.count_parameters(tree):,}" for name, tree in networks.items())
    print(f"{folder.name}: parameters: {sizes}", flush=True)
