"""Prints as JSON what the planner reads of a program whose collectives are known: `exchange.py cpu:8`, or a TPU's slice
of 8. Of each kind one runs in a scan of 5, between devices of the mesh axis 'model', of which there are 4.
"""

import json
import sys

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dollar_jax.plan import hlo
from dollar_jax.plan.collectives import collectives, largest_gather, sent_by_kind
from dollar_jax.plan.topology import make_devices
from dollar_jax.plan.traffic import memory_traffic

LENGTH, ROWS, WIDTH = 5, 32, 256


def exchange(kind, x):
    """x [ROWS, WIDTH] after one collective, in the same shape."""
    match kind:
        case "all-gather":
            return jnp.sin(lax.all_gather(x, "model", tiled=True)).reshape(4, ROWS, WIDTH).max(0)
        case "reduce-scatter":
            return jnp.tile(lax.psum_scatter(x, "model", tiled=True), (4, 1))
        case "all-reduce":
            return lax.psum(jnp.sin(x), "model")
        case "all-to-all":
            return lax.all_to_all(x, "model", 0, 0, tiled=True)
        case "collective-permute":
            return lax.ppermute(x, "model", [(i, (i + 1) % 4) for i in range(4)])


def read(kind, devices):
    """What the planner says of it."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    spec = PartitionSpec(("data", "model"))

    def loop(x):
        return lax.scan(lambda x, _: (jnp.cos(exchange(kind, x)), None), x, None, length=LENGTH)[0]

    with jax.set_mesh(mesh):
        program = jax.jit(jax.shard_map(loop, in_specs=spec, out_specs=spec, check_vma=False))
        x = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, spec))
        module = hlo.parse(program.lower(x).compile().as_text())
    found = collectives(module, 8)
    return {
        "kinds": sent_by_kind(found),
        "groups": sorted({one.group for one in found}),
        "largest_gather": largest_gather(found),
        "traffic": memory_traffic(module),
        "unknown_loops": module.unknown_loops(),
    }


if __name__ == "__main__":
    devices = make_devices(sys.argv[1])
    print(json.dumps({kind: read(kind, devices) for kind in sys.argv[2:]}))
