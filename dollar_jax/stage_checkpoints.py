"""The numbered checkpoints of a training stage, from which it goes on."""

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

import grain
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from dollar_jax.checkpoint import NUMBERED, Sealed, fault
from dollar_jax.distributed import is_main
from dollar_jax.errors import UserError
from dollar_jax.files import require_space
from dollar_jax.lazy import require_small_chunks
from dollar_jax.reading import plain

TIMEOUT = 24 * 3600  # seconds to write a checkpoint: a 14B's 400 GB at 10 MB/s take half of it; Orbax's own is 1,200


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """False: JAX counts these calls, and each stage starts at step 0, so only `distributed.Preemption` asks JAX."""
        return False


class Checkpoints:
    """The numbered checkpoints of a stage: the whole state and the position in the data, saved in the background.

    Args:
      folder: the stage's folder; checkpoints are in `folder/checkpoints`.
      keep: number of newest checkpoints to keep.
      best: a metric; the checkpoint with its largest value is kept too. With a minus in front: the smallest. '': none.
      networks: fields of the state that are stored as items of their own and can be loaded alone; all other fields are
        in the item `state`.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, best: str = "", networks: Collection[str] = ()):
        self._networks = networks
        self._most = keep + bool(best) + 1  # one is being written
        self._metric, self._sign = best.removeprefix("-"), -1 if best.startswith("-") else 1
        kept = [LatestN(keep)]
        if best:
            kept.append(BestN(get_metric_fn=itemgetter("value"), n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(kept),
            enable_async_checkpointing=True,
            async_options=ocp.options.AsyncOptions(timeout_secs=TIMEOUT),
            temporary_path_class=Sealed,
        )
        handlers = {name: ocp.StandardCheckpointHandler() for name in (*networks, "state")}
        handlers["data"] = ocp.JsonCheckpointHandler()
        path = (Path(folder) / NUMBERED).resolve()
        self._manager = _Manager(path, options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def require_space(self, state: Mapping, saves: int) -> None:
        """Raises UserError if the disk has too little space for `saves` more checkpoints, of which few are kept."""
        there = len(self._manager.all_steps())
        more = min(there + saves, self._most) - there
        require_space(self._manager.directory, more * _size(state), f" for {more} checkpoints at a time")

    def save(self, step: int, state: Mapping, batches: grain.DatasetIterator, metrics: Mapping[str, float]) -> None:
        """Starts to save a checkpoint. If the process is killed meanwhile, the previous checkpoint remains the newest.

        Args:
          metrics: the latest metrics; with {} this checkpoint cannot become the best.
        Raises:
          UserError: the disk has too little space, or `metrics` lacks the metric `best`.
        """
        require_space(self._manager.directory, _size(state))
        items = {name: ocp.args.StandardSave(tree) for name, tree in self._items(state).items()}
        items["data"] = ocp.args.JsonSave(batches.get_state())
        value = None
        if self._metric and metrics:
            if self._metric not in metrics:
                raise UserError(f"best: no metric {self._metric!r}; there are {', '.join(sorted(metrics))}")
            value = {"value": self._sign * metrics[self._metric]}
        self._manager.save(step, metrics=value, args=ocp.args.Composite(**items))

    def restore(self, state: Mapping, batches: grain.DatasetIterator) -> tuple[int, Mapping]:
        """Restores the newest checkpoint that can be read. Returns (step, state).

        Newer, damaged checkpoints are renamed to `STEP.damaged`, with a line on stderr.

        Args:
          state: ShapeDtypeStructs with the shapes and shardings to restore.
          batches: set to the position that was saved.
        Raises:
          UserError: no checkpoint can be read, or the newest has the parameters of another network.
        """
        items = {name: ocp.args.StandardRestore(tree) for name, tree in self._items(state).items()}
        items["data"] = ocp.args.JsonRestore()
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            if found := fault(Path(self._manager.directory) / str(step)):
                damaged[step] = found
                continue
            try:
                self._require_same(step, state)
                restored = self._manager.restore(step, args=ocp.args.Composite(**items))
                batches.set_state(restored["data"])
                break
            except UserError:
                raise
            except Exception as error:  # each library that reads raises its own exceptions
                damaged[step] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        else:
            step, reason = next(iter(damaged.items()))
            raise UserError(
                f"{self._manager.directory}: no checkpoint can be read ({step}: {reason}); remove the folder to begin"
                " this stage again"
            )
        if damaged:
            self._set_aside(damaged, step)
        return step, restored["state"] | {name: restored[name] for name in self._networks}

    def _set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        for number, reason in damaged.items():
            path = self._manager.directory / str(number)
            print(plain(f"{path} is damaged ({reason}): going on from {step}"), file=sys.stderr, flush=True)
            if is_main():
                os.replace(path, path.with_name(f"{number}.damaged"))
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def _require_same(self, step: int, state: Mapping) -> None:
        stored = self._manager.item_metadata(step)
        here, there = _shapes(state), _shapes(stored["state"])
        for network in self._networks:
            if network in stored:
                there |= {f"{network}/{name}": shape for name, shape in _shapes(stored[network]).items()}
        if different := sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name)):
            name = different[0]
            raise UserError(
                f"{self._manager.directory / str(step)} has another network: the shape of {name} is"
                f" {there.get(name)} there, {here.get(name)} here ({len(different)} in all); take another --workdir"
            )
        for name in ("state", *self._networks):
            require_small_chunks(Path(self._manager.directory) / str(step) / name, stored[name].tree)

    def _items(self, state: Mapping) -> dict[str, Mapping]:
        rest = {name: tree for name, tree in state.items() if name not in self._networks}
        return {"state": rest} | {name: state[name] for name in self._networks}

    @contextmanager
    def finished_on_error(self) -> Iterator[None]:
        """Finishes a checkpoint that is being saved when a UserError ends the process.

        Only in a run of one process: several would have to finish it together, and the others do not wait.
        """
        try:
            yield
        except UserError:
            if jax.process_count() == 1:
                self._manager.wait_until_finished()
            raise

    def close(self) -> None:
        """Waits for checkpoints that are being saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def _size(state: Mapping) -> int:
    """Bytes of a checkpoint, whose files all processes write to one disk."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Path -> shape of each leaf."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in paths}
