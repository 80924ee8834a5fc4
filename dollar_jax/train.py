"""The loop of every stage: batches in, updates, checkpoints, log. A second call goes on where the first stopped."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax import guard
from dollar_jax.checkpoint import Checkpoints
from dollar_jax.distributed import Preemption, is_main
from dollar_jax.errors import UserError
from dollar_jax.evaluate import collapse
from dollar_jax.files import write_atomically
from dollar_jax.metrics import Logger, read
from dollar_jax.sharding import batch_sharding, shard
from dollar_jax.watch import Heartbeat

Update = Callable[[Any, dict, list[str], int], tuple[Any, dict]]
RARELY_USED = ("ema", "optimizer", "optimizers")  # fields of states
SKIPS = 10  # updates in a row that are not finite end a run


class Preempted(Exception):
    """The process was asked to end, and everything is saved."""


def abstract(init: Callable, mesh: Mesh, *args, offload: bool = False):
    """Shapes, dtypes and shardings of the state `init(*args)`, see `initialize`."""
    shapes = jax.eval_shape(init, *args)
    shardings = shard(shapes, mesh)
    if offload:
        rarely_used = {name: tree for name, tree in vars(shardings).items() if name in RARELY_USED}
        shardings = shardings.replace(**jax.tree.map(lambda x: x.with_memory_kind("pinned_host"), rarely_used))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def initialize(init: Callable, mesh: Mesh, *args, offload: bool = False):
    """The state `init(*args)`, born in its shardings; with `offload`, `RARELY_USED` fields in the host's memory."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract(init, mesh, *args, offload=offload))
    return jax.jit(init, out_shardings=shardings)(*args)


def place(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """This process's rows of a batch, a tree of arrays, as arrays over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def finished(folder: Path, config: ConfigDict) -> bool:
    """Whether `train` has nothing left to do here: the last update was saved, and no guard prefers another."""
    return (folder / "checkpoints" / str(config.iterations)).exists() and not config.guard.metric


def train(
    folder: Path,
    state,
    update: Update,
    batches: grain.DatasetIterator,
    config: ConfigDict,
    mesh: Mesh,
    show: Callable[[Any], tuple[np.ndarray, list[str]]] | None = None,
    measure: Callable[[Any], dict[str, float]] | None = None,
    shown: Sequence[str] = (),
) -> guard.Verdict:
    """Runs a stage to its end, and says which checkpoint is the best where that is measured.

    On SIGTERM it saves a checkpoint and raises `Preempted`.

    Args:
      folder: checkpoints, log and events go here.
      state: a dataclass of arrays in their shardings.
      update: (state, batch on the mesh, captions, number of the update) -> (state, metrics). Its randomness comes
        from `state.step` or the number.
      batches: dicts of arrays, with captions as strings under 'caption'.
      config: iterations; save_every, keep, best: checkpoints; log_every; show_every, 0 for never; guard, see
        `guard.assess`, where `measure` is given.
      show: (state) -> (frames uint8 [n f h w 3], captions) for the log.
      measure: (state) -> values by names that begin with `held_out/` or `collapse/`, before the first update and at
        every checkpoint.
      shown: the names of those values that are printed too.

    Raises:
      UserError: the updates of a network are no longer finite.
    """
    guarded = measure is not None and bool(config.guard.metric)
    best = guard.PREFIX + "score" if guarded else config.best
    checkpoints = Checkpoints(folder, config.keep, best, list(networks(vars(state))))
    start = 0
    if checkpoints.latest is not None:
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), vars(state))
        start, restored = checkpoints.restore(target, batches)
        state = state.replace(**restored)
    if start < config.iterations and is_main():
        _describe(folder, vars(state))
    history = [line for line in read(folder) if line["step"] < start and any(n.startswith(guard.PREFIX) for n in line)]

    def verdict():
        return guard.assess(history, config.guard) if guarded else guard.Verdict(None, False)

    def look(done):
        begun = time.perf_counter()
        values = measure(state)
        history.append({"step": done - 1, **values})
        if guarded:
            values |= {guard.PREFIX + "score": guard.score(history, config.guard)}
        log.measured(done - 1, values, time.perf_counter() - begun, shown)
        for words in collapse.alarms(history[0], values):
            log.alarm(done - 1, words)
        return values

    skips, averages = Skips(folder.name), {}
    with (
        checkpoints.finished_on_error(),
        Logger(folder, folder.name, config.iterations, start, config.log_every) as log,
        Heartbeat(folder) as heartbeat,
        Preemption() as preemption,
    ):
        # A run that was asked to stop at its last update saved it unmeasured.
        if measure and (not history or start == config.iterations != history[-1]["step"] + 1):
            look(start)
        if checkpoints.latest is None and (guarded or not config.iterations):
            # The start may turn out to be the best, or is all that is asked for.
            value = {guard.PREFIX + "score": history[0][guard.REWARD]} if guarded else {}
            checkpoints.save(0, vars(state), batches, value)
        for step in range(start, config.iterations):
            if verdict().stop:
                if is_main():
                    print(f"{folder.name}: ended at {step}, the best is at {verdict().best}", flush=True)
                break
            batch = dict(next(batches))
            captions = [str(caption) for caption in batch.pop("caption")]
            state, metrics = update(state, place(batch, mesh), captions, step)
            skips.add(step, metrics)
            if written := log.log(step, metrics):
                averages = written
                skips.check()
            done = step + 1
            heartbeat.beat(done)
            stop = preemption.requested()
            if stop or done % config.save_every == 0 or done == config.iterations:
                measured = look(done) if measure and not stop else {}
                checkpoints.save(done, vars(state), batches, {} if stop else averages | measured)
            if stop:
                checkpoints.close()
                raise Preempted(f"{folder.name}: saved at step {done} and stopped; the same command goes on from there")
            if show and config.show_every and (done % config.show_every == 0 or done == config.iterations):
                log.videos(done, "samples", *show(state))
        checkpoints.close()
        if preemption.requested():
            raise Preempted(f"{folder.name}: finished and stopped; the same command goes on from there")
    return verdict()


def networks(state: Mapping) -> dict[str, Any]:
    """The fields of a state that are the parameters of networks."""
    return {name: tree for name, tree in state.items() if isinstance(tree, dict) and tree and name != "optimizers"}


class Skips:
    """Counts the updates that were skipped because they were not finite, and ends a run that does nothing else."""

    def __init__(self, stage: str):
        self._stage, self._pending, self._in_a_row = stage, [], Counter()

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes a step's `skipped/NETWORK`; they stay on the device until `check` fetches them."""
        self._pending.append((step, {name: value for name, value in metrics.items() if name.startswith("skipped/")}))

    def check(self) -> None:
        """Raises UserError if `SKIPS` updates of one network in a row were skipped."""
        pending, self._pending = jax.device_get(self._pending), []
        for step, skipped in pending:
            for name, value in skipped.items():
                network = name.removeprefix("skipped/")
                self._in_a_row[network] = self._in_a_row[network] + 1 if value else 0
                if self._in_a_row[network] == 1:
                    print(f"{self._stage}: update {step + 1} of {network} is not finite: skipped", file=sys.stderr)
                if self._in_a_row[network] == SKIPS:
                    raise UserError(
                        f"{self._stage}: {SKIPS} updates of {network} in a row, up to step {step + 1}, were not finite;"
                        " lower its learning_rate, or look at the data of these steps; the last checkpoint is intact"
                    )


def _describe(folder: Path, state: Mapping) -> None:
    """Says how large each network is, and leaves the table of all parameters in `parameters.txt`."""
    found = networks(state)
    tables = {
        name: parameter_overview.get_parameter_overview(tree, include_stats=False) for name, tree in found.items()
    }
    write_atomically(folder / "parameters.txt", "".join(f"{name}\n{table}\n\n" for name, table in tables.items()))
    sizes = ", ".join(f"{name} {parameter_overview.count_parameters(tree):,}" for name, tree in found.items())
    print(f"{folder.name}: parameters: {sizes}", flush=True)
