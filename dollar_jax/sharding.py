"""The device mesh, and the rules that map parameter paths to its axes. The mesh axes are

data      splits the batch; parameters are copied
fsdp      splits the batch; also splits parameters, and with them EMA, Adam's moments and frozen networks
context   splits the tokens of each video
"""

import math
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from einops import rearrange
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dollar_jax.errors import UserError

BATCH = ("data", "fsdp")  # mesh axes that split a batch
CONTEXT = "context"
AXES = (*BATCH, CONTEXT)

# (pattern of the path, mesh axis, candidate axes of the array). The first pattern that matches applies; the mesh axis
# splits the first candidate axis whose size it divides. An array that matches no pattern is copied to every device.
# Optimiser states contain the paths of their parameters and are split like them. A VAE (paths with encoder or decoder)
# is not split: it is small, its convolutions would be gathered for every few frames, and a single split matrix makes
# the compiler split channels and gather videos. Convolutions of other networks have more than `STACKED` axes and are
# not split either.
RULES = (
    (r".*/(encoder|decoder)/", "fsdp", ()),
    (r".*/(kernel|embedding|lora_a)$", "fsdp", (-2, -1)),
    (r".*/lora_b$", "fsdp", (-1, -2)),  # the other axis is the rank
)
STACKED = 3  # number of axes of a stack of matrices


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, context) over `devices`, by default all. One size may be -1: all remaining devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = {axis: config[axis] for axis in AXES}
    count = jax.device_count() if devices is None else len(devices)
    free = [axis for axis, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or known < 1 or (count % known if free else count != known):
        raise UserError(f"mesh {sizes} does not divide {count} devices: set config.mesh, -1 for at most one axis")
    sizes |= dict.fromkeys(free, count // known)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def local_mesh() -> Mesh:
    """The mesh of this process's devices, which share batches and parameters."""
    return make_mesh(ConfigDict({"data": 1, "fsdp": -1, "context": 1}), jax.local_devices())


def batch_shares(mesh: Mesh | AbstractMesh) -> int:
    """Number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def even_batch(size: int) -> int:
    """The smallest batch of at least `size` examples that the devices of the current mesh can share; elsewhere `size`.

    A batch that does not divide over them is made by each device as a whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shares = 1 if mesh.empty else batch_shares(mesh)
    return math.ceil(size / shares) * shares


def check_batch(size: int, mesh: Mesh, pieces: int = 1, group: int = 1, name: str = "batch_size") -> None:
    """Raises UserError if a batch of `size` examples does not divide evenly over the devices, and on each of them into
    `pieces` and into groups. `name` is the field that has the size.
    """
    shares = batch_shares(mesh)
    unit = shares * math.lcm(pieces, group)
    if size % unit:
        raise UserError(
            f"{name} {size} does not divide over data x fsdp = {shares} devices"
            + (f" and accumulate = {pieces}" if pieces > 1 else "")
            + (f" and groups of {group}" if group > 1 else "")
            + f": give a multiple of {unit}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the leading axis over `BATCH`."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def data_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process reads share `index` of the `count` equal shares of every batch.

    Processes whose devices differ only in their position on the context axis read the same share.

    Raises:
      UserError: the shares of two processes overlap partly.
    """
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape[CONTEXT])):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    shares = sorted({tuple(sorted(mine)) for mine in rows.values()})
    if len(shares) > 1 and len({row for share in shares for row in share}) != sum(map(len, shares)):
        raise UserError(
            "mesh.context splits the devices of a host unevenly: give a divisor or multiple of their number"
        )
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def shard(tree, mesh: Mesh):
    """The NamedSharding of every leaf of `tree` (arrays or ShapeDtypeStructs), by `RULES`."""

    def sharding(path, leaf):
        name = "/" + "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        for pattern, axis, candidates in RULES:
            if re.match(pattern, name) and leaf.ndim <= STACKED:
                split = [i for i in candidates if leaf.ndim >= -i and leaf.shape[i] % mesh.shape[axis] == 0][:1]
                spec = [axis if i - leaf.ndim in split else None for i in range(leaf.ndim)]
                return NamedSharding(mesh, PartitionSpec(*spec))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def with_shardings(shapes, mesh: Mesh):
    """ShapeDtypeStructs with the shardings of `shard`."""
    return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), shapes, shard(shapes, mesh))


def compile_step(step: Callable, state, mesh: Mesh) -> Callable:
    """`step(state, ...) -> (state, metrics)`, jitted once with the state donated and its shardings pinned."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of a batch on the mesh, in order: the inverse of `train.place`."""
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def thin(x: jax.Array | np.ndarray, shares: int, count: int) -> jax.Array | np.ndarray:
    """`count` rows of a batch that is split into `shares`: the first `count / shares` rows of each share."""
    return x.reshape(shares, -1, *x.shape[1:])[:, : count // shares].reshape(count, *x.shape[1:])


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Splits the leading axes of x over these mesh axes in a function traced under a mesh; elsewhere returns x."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else lax.with_sharding_constraint(x, fit(x.shape, axes, mesh))


def one_by_one(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """function(x), traced with one row of x on each device, in a loop over the rows that each has: memory of one row.

    Where the batch does not divide over the devices, each of them computes all rows, as `constrain` has it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shares = 1 if mesh.empty or len(x) % batch_shares(mesh) else batch_shares(mesh)
    rows = constrain(rearrange(x, "(shares n) ... -> n shares ...", shares=shares), None, BATCH)
    made = lax.map(lambda row: function(constrain(row, BATCH)), rows)
    return constrain(rearrange(made, "n shares ... -> (shares n) ..."), BATCH)


def context_size() -> int:
    """Number of devices that share the tokens of a video in a function traced under a mesh; elsewhere 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[CONTEXT]


def fit(shape: Sequence[int], axes: Sequence[str | tuple[str, ...] | None], mesh) -> PartitionSpec:
    """The spec that splits each axis of an array over its mesh axis, if the mesh axis divides the size."""

    def size(axis):
        return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))

    return PartitionSpec(*(a if a and n % size(a) == 0 else None for n, a in zip(shape, axes, strict=False)))
