"""A model on the disk: a folder with a card, `config.json` (`dollar_jax.card`), and the files that the card names.

The folder of a training stage is a model's folder too, so that a network in training can be sampled at any time. Its
numbered checkpoints (`dollar_jax.stage_checkpoints`) hold each network as an item of its own. No file in a model's
folder points outside, so the folder can be moved and shared. Each checkpoint has checksums (`dollar_jax.checksums`),
which are verified when it is loaded.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.typing import DTypeLike

from dollar_jax import card as cards
from dollar_jax import checksums, lazy
from dollar_jax.card import Card
from dollar_jax.data.text import copy_tokenizer
from dollar_jax.distributed import is_main
from dollar_jax.errors import UserError
from dollar_jax.files import new_folder, write_atomically
from dollar_jax.models import build, lora
from dollar_jax.models.network import Network, narrowed, parameter_shapes
from dollar_jax.reading import inside
from dollar_jax.sharding import with_shardings
from dollar_jax.types import Params

SHARED = ("vae", "text_encoder", "tokenizer")  # components that a student shares with its teacher
NUMBERED = "checkpoints"

_networks: dict[str, Network] = {}


def write_card(folder: str | os.PathLike, card: Card) -> None:
    """Writes `folder/config.json`, atomically.

    Raises:
      UserError: `read_card` would refuse this card.
    """
    path, content = Path(folder) / "config.json", json.dumps(card, indent=2) + "\n"
    cards.check(json.loads(content), path)
    write_atomically(path, content)


def root(folder: str | os.PathLike) -> Path:
    """The model's folder: `folder` itself, or the folder that contains the numbered checkpoint `folder`."""
    folder = Path(folder)
    return folder.parents[1] if _is_number(folder.name) and folder.parent.name == NUMBERED else folder


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def read_card(folder: str | os.PathLike) -> Card:
    """The card of a model's folder, or of a numbered checkpoint in it. Its paths are relative to `root(folder)`.

    Raises:
      UserError: the folder holds no model, or its card is not valid.
    """
    folder, place = Path(folder), root(folder) / "config.json"
    if not place.is_file():
        raise UserError(f"{folder}: no checkpoint here ({place} is missing)")
    card = cards.read(place)
    if folder == root(folder):
        return card
    own = "vae" if card["role"] == "vae" else "transformer"
    return card | {own: card[own] | {"path": f"{NUMBERED}/{folder.name}"}} if own in card else card


def _place(folder: str | os.PathLike, part: Card) -> Path:
    """The folder of a component's checkpoint: its path, or the newest numbered checkpoint there; its item is in it."""
    path = inside(root(folder), part["path"])
    if path.name == NUMBERED:
        steps = [int(child.name) for child in path.glob("*") if _is_number(child.name)]
        if not steps:
            raise UserError(f"{path}: no checkpoint was saved here yet")
        path = inside(path, str(max(steps)))
    inside(path, part["item"])
    if not path.is_dir():
        raise UserError(f"{path} is missing: the checkpoint in {root(folder)} points to it")
    return path


def network_of(part: Card, **options) -> Network:
    """The network of a component in a card, without its parameters; see `build` for options and errors.

    To build one takes a second, and JAX remembers what it traced of it: a network of this package is built only once.
    """
    name = repr((part["architecture"], part["config"], options))
    if name in _networks:
        return _networks[name]
    network = build(part["architecture"], part["config"], **options)
    if ":" not in part["architecture"]:  # whether the user trusts one from outside is asked each time
        _networks[name] = network
    return network


def load_component(
    folder: str | os.PathLike,
    part: Card,
    lora_scale: float = 1.0,
    bases: Mapping[str, Params] = MappingProxyType({}),
    keep: DTypeLike | None = None,
    **options,
) -> tuple[Network, Params]:
    """Loads one component of a card. Returns (network, parameters).

    Under a mesh, each device reads only its own part of the parameters. Those of a component with `lora` are the base's
    with the adapter, see `models.lora.attach`.

    Args:
      folder: the model's folder, or a numbered checkpoint in it.
      part: the component's entry in the card.
      lora_scale: strength of the adapter.
      bases: digest -> parameters that are in memory already, which are taken where they are the base of an adapter.
      keep: dtype of the large matrices, see `models.network.narrowed`; None: all parameters keep that of the files.
      **options: options of the network: dtype, remat, attention.
    Raises:
      UserError: the checkpoint is missing or damaged, its shapes differ from the card, or the base of its adapter is
        another one than in training.
    """
    network = network_of(part, **options)
    if "lora" not in part:
        return network, load_stored(folder, part, keep, **options)
    _require_base(folder, part)
    base = bases.get(part["lora"]["sha256"])
    if base is None:
        base = load_stored(folder, base_of(part), keep, **options)
    return network, lora.attach(base, load_stored(folder, part, **options), part["lora"]["alpha"], lora_scale)


def _require_base(folder: str | os.PathLike, part: Card) -> None:
    """Raises UserError if the base of a component with `lora` is another one than in training."""
    if digest(folder, base_of(part)) != part["lora"]["sha256"]:
        raise UserError(
            f"{root(folder)}/{part['lora']['base']} is not the base that the adapter was trained on: put that one"
            " back, or train again"
        )


def load_stored(folder: str | os.PathLike, part: Card, keep: DTypeLike | None = None, **options) -> Params:
    """Loads the parameters of one component as they are stored: with `lora` those of the adapter alone.

    Arguments, errors: `load_component`.
    """
    place, stored = _stored(folder, part, **options)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)
    wanted = wanted if keep is None else narrowed(wanted, keep)
    if not (mesh := jax.sharding.get_mesh()).empty:
        wanted = with_shardings(wanted, mesh)
    arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
    with lazy.intact(place), ocp.PyTreeCheckpointer() as reader:
        return reader.restore(place, ocp.args.PyTreeRestore(item=wanted, restore_args=arguments))


def base_of(part: Card) -> Card:
    """The component on which the adapter of a component with `lora` was trained."""
    return {name: part[name] for name in ("architecture", "config")} | {"path": part["lora"]["base"], "item": ""}


def digest(folder: str | os.PathLike, part: Card) -> str:
    """SHA-256 of a component's parameters: of the names, sizes and checksums of their files.

    Raises:
      UserError: the checkpoint is missing, or has no checksums.
    """
    path = _place(folder, part) / part["item"]
    try:
        files = checksums.listed(path)
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}): copy it again, or take another checkpoint") from error
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def open_component(folder: str | os.PathLike, part: Card) -> Params:
    """What `load_stored` loads, as `Lazy` arrays."""
    return lazy.stored(*_stored(folder, part))


def open_base(folder: str | os.PathLike, part: Card) -> Params:
    """The parameters of the base of a component with `lora`, as `Lazy` arrays. Arguments, errors: `load_component`."""
    _require_base(folder, part)
    return open_component(folder, base_of(part))


def _stored(folder: str | os.PathLike, part: Card, **options) -> tuple[Path, Params]:
    """Verifies a component's files: their folder, and Orbax's description of each parameter."""
    target = parameter_shapes(network_of(part, **options))  # built already, with the same options
    path, item = _place(folder, part), part["item"]
    if item and not (path / item).is_dir():
        items = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise UserError(f"{path} holds no {item!r}, but {', '.join(map(repr, items))}")
    if found := fault(path, item):
        raise UserError(f"{path} is damaged ({found}): copy it again, or take another checkpoint")
    with lazy.intact(path), ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(path / item).item_metadata.tree
        shapes = [jax.tree.map(lambda x: tuple(x.shape), tree) for tree in (stored, target)]
        if lora.fault(target, stored) if "lora" in part else shapes[0] != shapes[1]:
            raise UserError(f"{path} holds another network than {root(folder)}/config.json describes")
        lazy.require_small_chunks(path, stored)
    return path / item, stored


def fault(path: Path, item: str = "") -> str:
    """`checksums.fault` on all processes: each verifies a part of the files, and all get the same outcome."""
    found = checksums.fault(path, item, jax.process_index(), jax.process_count())
    if jax.process_count() == 1 or not multihost_utils.process_allgather(np.array(bool(found))).any():
        return found
    return found or "another process found it"


def save_params(folder: str | os.PathLike, params: Params) -> None:
    """Writes the parameters of a network that is not in training (a text encoder, converted weights).

    Args:
      params: arrays or `Lazy` ones, which are read one by one, each when the one before is written.
    """
    registry = ocp.type_handlers.create_type_handler_registry((lazy.Lazy, lazy.Writer()))
    # Orbax's defaults would need another copy in memory, in their compressor.
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False, use_ocdbt=False)
    with ocp.Checkpointer(handler, temporary_path_class=Sealed) as writer:
        writer.save(Path(folder).resolve(), jax.tree.map(lazy.lazy, params), force=True)


def bring(card: Card, source: str | os.PathLike, folder: str | os.PathLike, names: Sequence[str] = SHARED) -> Card:
    """Brings components of the model in `source` into `folder`. Returns their entries for the card of `folder`.

    The files in `folder` are hard links, which take no space, or copies on a disk without hard links. Of a training
    checkpoint only the component's item comes along.

    Args:
      card: card of `source`.
      names: names of the components.
    Raises:
      UserError: a component is missing or damaged, or its path leads out of `source`.
    """
    brought = {}
    for name in names:
        brought[name] = card[name] | ({"path": name} if name == "tokenizer" else {"path": name, "item": ""})
        if is_main():
            (_bring_tokenizer if name == "tokenizer" else _bring_network)(source, card[name], Path(folder) / name)
    multihost_utils.sync_global_devices(f"parts of {folder}")
    return brought


def _bring_tokenizer(source: str | os.PathLike, part: Card, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    with new_folder(target) as temporary:
        copy_tokenizer(inside(root(source), part["path"]), temporary)


def _bring_network(source: str | os.PathLike, part: Card, target: Path) -> None:
    path = _place(source, part) / part["item"]  # each item of a training checkpoint has checksums of its own
    try:
        files = checksums.listed(path)
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}): copy it again") from error
    if stray := checksums.strays(path, set(files)):
        raise UserError(f"{path}: {stray}")
    if (target / checksums.NAME).exists() and checksums.listed(target) == files:
        return
    shutil.rmtree(target, ignore_errors=True)
    with new_folder(target) as temporary:
        shutil.copytree(path, temporary, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # the target is on another disk, or the disk has no hard links
        shutil.copyfile(source, target)


class Sealed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The temporary folder of a checkpoint, which gets its checksums before it gets its final name."""

    async def finalize(self) -> None:
        checksums.write(self.get())
        await super().finalize()
