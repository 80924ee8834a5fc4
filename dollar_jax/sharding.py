"""Where arrays live: the mesh, and rules from parameter paths to its axes."""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dollar_jax.importing import UserError

AXES = ("data", "fsdp")

# First match wins, from the last axis backwards; what matches none is replicated. Optimiser states repeat the paths of
# the parameters they belong to, so that they follow them.
RULES = ((r".*/(kernel|embedding)$", ("fsdp", None)),)


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh (data, fsdp) over all devices; one size may be -1 and is then what is left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = [config[axis] for axis in AXES]
    devices = jax.device_count()
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [devices // known if size == -1 else size for size in sizes]
    if np.prod(sizes) != devices:
        raise UserError(f"mesh {dict(zip(AXES, sizes, strict=True))} does not fit {devices} devices: set config.mesh")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of a batch is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard(tree, mesh: Mesh):
    """The NamedSharding of every leaf of `tree` (arrays or ShapeDtypeStructs), by `RULES`.

    An axis that its mesh axis does not divide stays whole.
    """

    def sharding(path, leaf):
        name = "/" + "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        for pattern, axes in RULES:
            if re.match(pattern, name) and leaf.ndim >= len(axes):
                axes = (None,) * (leaf.ndim - len(axes)) + axes
                fits = zip(axes, leaf.shape, strict=True)
                return NamedSharding(
                    mesh, PartitionSpec(*(a if a and n % mesh.shape[a] == 0 else None for a, n in fits))
                )
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)
