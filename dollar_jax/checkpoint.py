"""Checkpoints. A model is a folder: `config.json`, its card, beside the parameters that the card points to.

The folder of a training stage is such a folder, so that what is in training can be sampled at any time. Card:

  role          teacher, student or vae
  transformer, vae, text_encoder    {architecture, config, path, item}: the parameters are the entry `item` of the orbax
                checkpoint at `path`, relative to the folder; `path` = checkpoints means the newest. The vae has its
                scaling_factor too
  tokenizer     {path, length}, a Hugging Face tokenizer folder
  velocity, schedule, times, sampler, guidance    how to sample, see `dollar_jax.sampling`
  video         {frames, height, width, fps, independent_chunk}: the last is 0, or how many the VAE sees at once
                (`dollar_jax.models.independent_chunks`); latent_shape [f, h, w, c]
  lead          how many of these f latent frames are in front of the video (CogVideoX 1.5 needs an even number)

A converted component also has its `source`, the config.json that it came with.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from dollar_jax.distributed import is_main
from dollar_jax.files import require_space, write_atomically
from dollar_jax.importing import UserError
from dollar_jax.models import build
from dollar_jax.models.network import Network
from dollar_jax.notation import Params
from dollar_jax.sharding import with_shardings

Card = dict[str, Any]
COMPONENTS = ("transformer", "vae", "text_encoder")


def write_card(folder: str | os.PathLike, card: Card) -> None:
    """Writes `folder/config.json`, atomically."""
    write_atomically(Path(folder) / "config.json", json.dumps(card, indent=2) + "\n")


def read_card(folder: str | os.PathLike) -> Card:
    """The card of a model's folder, or of one numbered checkpoint in it.

    Raises:
      UserError: the folder is no model's.
    """
    folder = Path(folder)
    try:
        if folder.name.isdigit() and folder.parent.name == "checkpoints":
            card = json.loads((folder.parents[1] / "config.json").read_text())
            card = relocate(card, folder.parents[1], folder)
            own = "vae" if card["role"] == "vae" else "transformer"
            return card | {own: card[own] | {"path": "."}}
        return json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no checkpoint here ({error.filename} is missing)") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{folder}/config.json is not JSON: {error}") from error


def relocate(card: Card, source: str | os.PathLike, target: str | os.PathLike) -> Card:
    """The same card with its relative paths seen from another folder."""

    def moved(part):
        return part | {"path": os.path.relpath(Path(source) / part["path"], target)}

    return card | {name: moved(card[name]) for name in (*COMPONENTS, "tokenizer") if name in card}


def _item(folder: Path, part: Card) -> Path:
    """The orbax item that a component's path means."""
    path = (folder / part["path"]).resolve()
    if path.name == "checkpoints":
        steps = [int(child.name) for child in path.glob("*") if child.name.isdigit()]
        if not steps:
            raise UserError(f"{path}: no checkpoint was saved here yet")
        path = path / str(max(steps))
    return path / "state" if path.name.isdigit() else path


def load_component(folder: str | os.PathLike, part: Card, **options) -> tuple[Network, Params]:
    """Network and parameters, in the dtype they are stored in, of one component of a card. `options` go to the network
    (dtype, remat, attention). Under a mesh each device reads its own part of the parameters.

    Raises:
      UserError: nothing is stored there, or what is stored has other shapes than the card says.
    """
    network = build(part["architecture"], part["config"], **options)
    target = jax.eval_shape(network.init, jax.random.key(0))
    path = _item(Path(folder), part)
    if not path.exists():
        raise UserError(f"{path} is missing: the checkpoint in {folder} points to it")
    item = part["item"]
    with ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(path).item_metadata.tree
        if item and item not in stored:
            raise UserError(f"{path} holds no {item!r}, but {', '.join(map(repr, stored))}")
        stored = stored[item] if item else stored
        shapes = [jax.tree.map(lambda x: tuple(x.shape), tree) for tree in (stored, target)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{path} holds another network than {folder}/config.json describes")
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)
        if not (mesh := jax.sharding.get_mesh()).empty:
            wanted = with_shardings(wanted, mesh)
        wanted = {item: wanted} if item else wanted
        restored = reader.restore(
            path,
            ocp.args.PyTreeRestore(
                item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            ),
        )
    return network, restored[item] if item else restored


def save_params(folder: str | os.PathLike, params: Params) -> None:
    """Writes the parameters of a network that is not in training (a text encoder, converted weights), without a copy in
    memory: orbax would make two, one of its own and one of its compressor.
    """
    numpy_handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, numpy_handler))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False, use_ocdbt=False)
    with ocp.Checkpointer(handler) as writer:
        writer.save(Path(folder).resolve(), jax.tree.map(np.asarray, params), force=True)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: only `distributed.Preemption` asks JAX, which counts the calls; stages begin to count again."""
        return False


class Checkpoints:
    """The numbered checkpoints of a stage: the whole state and the data position, saved in the background.

    Args:
      folder: of the stage; they are in `folder/checkpoints`.
      keep: so many of the newest stay.
      best: a metric; the checkpoint where it was largest stays too. With a minus in front: smallest. '' for none.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, best: str = ""):
        self._metric, self._sign = best.removeprefix("-"), -1 if best.startswith("-") else 1
        kept = [LatestN(keep)]
        if best:
            kept.append(BestN(get_metric_fn=itemgetter("value"), n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(kept), enable_async_checkpointing=True
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        path = (Path(folder) / "checkpoints").resolve()
        self._manager = _Manager(path, options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        """The newest complete step, None before the first."""
        return self._manager.latest_step()

    def save(self, step: int, state: Mapping, batches: grain.DatasetIterator, metrics: Mapping[str, float]) -> None:
        """Begins to save; a process killed meanwhile leaves the checkpoint before as the newest.

        Args:
          metrics: the latest; empty before the first, then this checkpoint cannot become the best.
        Raises:
          UserError: the disk has no room for it, or `metrics` lack the one that says which is best.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // jax.process_count()
        require_space(self._manager.directory, needed)
        items = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(batches.get_state())}
        value = None
        if self._metric and metrics:
            if self._metric not in metrics:
                raise UserError(f"best: no metric {self._metric!r}; there are {', '.join(sorted(metrics))}")
            value = {"value": self._sign * metrics[self._metric]}
        self._manager.save(step, metrics=value, args=ocp.args.Composite(**items))

    def restore(self, state: Mapping, batches: grain.DatasetIterator) -> tuple[int, Mapping]:
        """(step, state) of the newest checkpoint that can be read, in the shapes and shardings of `state`; `batches` is
        moved to its position. Newer ones, which cannot be read, are set aside as `STEP.damaged`, and that is said.

        Raises:
          UserError: none can be read, or the newest is of another network.
        """
        items = {"state": ocp.args.StandardRestore(state), "data": ocp.args.JsonRestore()}
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                self._require_same(step, state)
                restored = self._manager.restore(step, args=ocp.args.Composite(**items))
                break
            except UserError:
                raise
            except Exception as error:  # each of the libraries that read has classes of its own
                damaged[step] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        else:
            step, reason = next(iter(damaged.items()))
            raise UserError(
                f"{self._manager.directory}: no checkpoint can be read ({step}: {reason}); remove the folder to begin"
                " this stage again"
            )
        if damaged:
            self._set_aside(damaged, step)
        batches.set_state(restored["data"])
        return step, restored["state"]

    def _set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        for number, reason in damaged.items():
            path = self._manager.directory / str(number)
            print(f"{path} is damaged ({reason}): going on from {step}", file=sys.stderr, flush=True)
            if is_main():
                os.replace(path, path.with_name(f"{number}.damaged"))
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def _require_same(self, step: int, state: Mapping) -> None:
        stored = self._manager.item_metadata(step)["state"]
        there, here = (_shapes(tree) for tree in (stored, state))
        if not there:
            raise FileNotFoundError("its metadata is gone")
        if different := sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name)):
            name = different[0]
            raise UserError(
                f"{self._manager.directory / str(step)} is of another network: {name} is {there.get(name)} there,"
                f" {here.get(name)} here ({len(different)} in all); take another --workdir"
            )

    @contextmanager
    def finished_on_error(self) -> Iterator[None]:
        """Lets what is being saved come to its end before a mistake of the user's ends the process. Not among several:
        the others would not wait for it.
        """
        try:
            yield
        except UserError:
            if jax.process_count() == 1:
                self._manager.wait_until_finished()
            raise

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Shapes by path."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in paths}
