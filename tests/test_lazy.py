"""Networks that are written and read one parameter at a time."""

import time
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dollar_jax import checkpoint
from dollar_jax.convert.tables import Rule, convert_lazily, linear, restore_lazily, same
from dollar_jax.convert.tensors import open_folder, write_folder
from dollar_jax.lazy import Lazy, stored

TABLE = [
    Rule("a.{layer}.table", "a/table", same),
    Rule("b.{layer}.weight", "b/kernel", linear),
    Rule("embed.weight", "embed", same, zeros="lost"),
    Rule("tied.weight", "embed", same),
    Rule("norm.weight", "norm", same),
]
PARAMS = {
    "a": {"table": np.arange(24, dtype=np.float32).reshape(2, 3, 4)},
    "b": {"kernel": np.arange(24, dtype=jnp.bfloat16).reshape(2, 4, 3)},
    "embed": np.arange(1, 11, dtype=np.float32).reshape(5, 2),
    "norm": np.array(3, np.float32),
}


class Watched:
    """Makes `Lazy` arrays, notes the order in which they are read, and that none is alive when the next is read."""

    def __init__(self, before=lambda: None):
        self.read, self.alive, self.before = [], [], before

    def __call__(self, name, array) -> Lazy:
        return Lazy(array.shape, array.dtype, partial(self._make, name, array))

    def _make(self, name, array):
        for _ in range(100):  # TensorStore lets go in a thread of its own
            alive = [old for old, place in zip(self.read, self.alive, strict=True) if place() is not None]
            if not alive:
                break
            time.sleep(0.01)
        assert not alive, name
        self.before()
        made = array.copy()
        self.read.append(name)
        self.alive.append(weakref.ref(made))
        return made


def watch(watched, params=PARAMS):
    return jax.tree.map_with_path(lambda path, x: watched("/".join(step.key for step in path), x), params)


def assert_equal(ours, theirs):
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), ours, theirs)


def test_a_parameter_is_read_when_the_one_before_is_written_and_freed(tmp_path):
    written = []
    watched = Watched(before=lambda: written.append(len(list(tmp_path.glob("*/*/.zarray")))))
    checkpoint.save_params(tmp_path / "params", watch(watched))
    assert watched.read == ["a/table", "b/kernel", "embed", "norm"]
    assert written == [0, 1, 2, 3]


def save_default(path, params, **arguments):
    """As a network in training."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, jax.tree.map(jnp.asarray, params), **arguments)


def save_chunks(path, params):
    """The same with several chunks for each array, as from several devices."""
    save_default(path, params, save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=32), params))


def save_zarr(path, params):
    """A folder for each array, compressed."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as writer:
        writer.save(path, params)


@pytest.mark.parametrize("save", [checkpoint.save_params, save_default, save_chunks, save_zarr])
def test_parameters_are_read_alone_in_whichever_way_they_were_stored(save, tmp_path):
    save(tmp_path / "params", PARAMS)
    with ocp.PyTreeCheckpointer() as reader:
        metadata = reader.metadata(tmp_path / "params").item_metadata.tree
    if save == save_chunks:
        assert metadata["a"]["table"].storage.chunk_shape != (2, 3, 4)
    found = stored(tmp_path / "params", metadata)
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype, x.nbytes), tree) for tree in (found, PARAMS)]
    assert kinds[0] == kinds[1]
    assert_equal(jax.tree.map(lambda x: x.read(), found), PARAMS)


def rows():
    """The state dict of the stacked parameters."""
    tables, kernels = ({f"{name}.{layer}": x for layer, x in enumerate(*PARAMS[name].values())} for name in "ab")
    return {f"{key}.weight": x.T for key, x in kernels.items()} | {f"{key}.table": x for key, x in tables.items()}


def test_only_what_must_be_compared_is_read_before_all_fits():
    weights = rows() | {"norm.weight": PARAMS["norm"], "embed.weight": PARAMS["embed"], "tied.weight": PARAMS["embed"]}
    read = []

    def tensor(key, value):
        return Lazy(value.shape, value.dtype, lambda: read.append(key) or value)

    lazy = convert_lazily(TABLE, {key: tensor(key, value) for key, value in weights.items()}, PARAMS)
    assert sorted(read) == ["embed.weight", "embed.weight", "tied.weight"]
    read.clear()
    assert_equal(lazy["b"]["kernel"].read(), PARAMS["b"]["kernel"])
    assert read == ["b.0.weight", "b.1.weight"]
    assert_equal(jax.tree.map(lambda x: x.read(), lazy), PARAMS)


@pytest.mark.parametrize("shard_bytes", [1, 60, 10**6])
def test_a_stacked_parameter_is_read_once_for_all_its_rows(shard_bytes, tmp_path):
    watched = Watched()
    stacked = {name: PARAMS[name] for name in "ab"}
    write_folder(tmp_path, "model", restore_lazily(TABLE, watch(watched, stacked)), shard_bytes)
    assert watched.read == ["a/table", "b/kernel"]
    assert_equal(dict(open_folder(tmp_path)), rows())
