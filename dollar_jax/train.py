"""The training loop of all stages: batches, updates, checkpoints, log. A second call continues the first."""

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
from dollar_jax.compiling import ON_CPU
from dollar_jax.distributed import Preemption, is_main
from dollar_jax.errors import UserError
from dollar_jax.evaluate import collapse
from dollar_jax.files import write_atomically
from dollar_jax.metrics import Logger, read
from dollar_jax.sharding import batch_sharding, shard
from dollar_jax.stage_checkpoints import Checkpoints
from dollar_jax.watch import Heartbeat

Update = Callable[[Any, dict, list[str], int], tuple[Any, dict]]
RARELY_USED = (
    "ema",
    "own_ema",
    "optimizer",
    "optimizers",
)  # fields of a state that `offload` keeps in the host's memory
SKIPS = 10  # number of non-finite updates in a row that ends a run


class Preempted(Exception):
    """The process was asked to stop, and a checkpoint is saved."""


def abstract(init: Callable, mesh: Mesh, *args, offload: bool = False):
    """Shapes, dtypes and shardings of the state that `initialize` returns for the same arguments."""
    shapes = jax.eval_shape(init, *args)
    shardings = shard(shapes, mesh)
    if offload:
        rarely_used = {name: tree for name, tree in vars(shardings).items() if name in RARELY_USED}
        shardings = shardings.replace(**jax.tree.map(lambda x: x.with_memory_kind("pinned_host"), rarely_used))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def initialize(init: Callable, mesh: Mesh, *args, offload: bool = False):
    """The state `init(*args)`, created in its shardings; `offload` keeps `RARELY_USED` fields in the host's memory."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract(init, mesh, *args, offload=offload))
    # The program runs once, and on CPUs to optimise its random numbers takes far longer than it saves.
    options = ON_CPU if mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(*args)


def place(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """A batch on the mesh, assembled from the rows that each process holds; both are trees of arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def finished(folder: Path, config: ConfigDict) -> bool:
    """Whether `train` has nothing left to do: the last checkpoint is saved, and no guard may prefer another one."""
    guarded = "guard" in config and config.guard.metric
    return (folder / "checkpoints" / str(config.iterations)).exists() and not guarded


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
    """Runs a stage to its end. Returns the guard's verdict: the best checkpoint, None without a guard.

    Args:
      folder: the stage's folder for checkpoints, log and TensorBoard events.
      state: a dataclass of arrays in their shardings.
      update: (state, batch on the mesh, captions, number of the update) -> (state, metrics). Its randomness is a
        function of `state.step` or the number.
      batches: dicts of arrays; 'caption' holds the captions as strings.
      config: iterations; save_every, keep and best for checkpoints; log_every; show_every (0: never); guard, see
        `guard.assess`, which is used if `measure` is given.
      show: (state) -> (frames uint8 [n f h w 3], captions), videos for the log.
      measure: (state) -> name -> value, called before the first update and at every checkpoint. Names begin with
        `held_out/` or `collapse/`.
      shown: names of the measured values that are printed too.

    Raises:
      UserError: the disk has too little space for the checkpoints, or the updates of a network are no longer finite.
      Preempted: the process got SIGTERM; a checkpoint is saved.
    """
    guarded = measure is not None and bool(config.guard.metric)
    best = guard.PREFIX + "score" if guarded else config.best
    checkpoints = Checkpoints(folder, config.keep, best, list(networks(vars(state))))
    start = 0
    if checkpoints.latest is not None:
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), vars(state))
        start, restored = checkpoints.restore(target, batches)
        state = state.replace(**restored)
    # The untrained state may turn out to be the best checkpoint; with 0 iterations it is the only one.
    untrained = checkpoints.latest is None and (guarded or not config.iterations)

    def saves(done):
        return done % config.save_every == 0 or done == config.iterations

    checkpoints.require_space(vars(state), untrained + sum(map(saves, range(start + 1, config.iterations + 1))))
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

    skips, averages, before = Skips(folder.name), {}, {}
    with (
        checkpoints.finished_on_error(),
        Logger(folder, folder.name, config.iterations, start, config.log_every) as log,
        Heartbeat(folder) as heartbeat,
        Preemption() as preemption,
    ):
        # A run that was asked to stop at its last update has saved this checkpoint without measuring it.
        if measure and (not history or start == config.iterations != history[-1]["step"] + 1):
            look(start)
        if untrained:
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
            # At most one update is in flight: a signal or a checkpoint waits for no longer queue.
            jax.block_until_ready(before)
            before = metrics
            skips.add(step, metrics)
            if written := log.log(step, metrics):
                averages = written
                skips.check()
            done = step + 1
            heartbeat.beat(done)
            stop = preemption.requested()
            if stop or saves(done):
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
    """The fields of a state that hold the parameters of a network, without empty ones."""
    return {name: tree for name, tree in state.items() if isinstance(tree, dict) and tree and name != "optimizers"}


class Skips:
    """Counts the updates that were skipped because they were not finite, and ends a run after `SKIPS` in a row."""

    def __init__(self, stage: str):
        self._stage, self._pending, self._in_a_row = stage, [], Counter()

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Notes the metrics `skipped/NETWORK` of a step; the values stay on the device until `check` fetches them."""
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
    """Prints the number of parameters of each network, and writes the table of all parameters to `parameters.txt`."""
    found = networks(state)
    tables = {
        name: parameter_overview.get_parameter_overview(tree, include_stats=False) for name, tree in found.items()
    }
    write_atomically(folder / "parameters.txt", "".join(f"{name}\n{table}\n\n" for name, table in tables.items()))
    sizes = ", ".join(f"{name} {parameter_overview.count_parameters(tree):,}" for name, tree in found.items())
    print(f"{folder.name}: parameters: {sizes}", flush=True)
