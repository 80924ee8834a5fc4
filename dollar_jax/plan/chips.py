"""Data sheets of accelerators, one device of jax each.

TPUs: cloud.google.com/tpu/docs/{v5e,v5p,v6e}, where the interconnect is given in both directions of all ports together
(400, 1200, 800 GB/s); the memory is what the compiler lets a program have. GPUs: NVIDIA's data sheets of the SXM
versions, without sparsity, where NVLink is given in both directions (A100 600, H100 and H200 900, B200 1800 GB/s).
"""

from dataclasses import dataclass
from typing import Literal

GB, GIB = 1e9, 2.0**30


@dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      platform: tpu is compiled for; gpu is estimated from a program for CPUs; cpu is what this machine has.
      flops: dense bfloat16 products with float32 sums, FLOP/s. None: not known.
      memory: bytes. None: not known.
      bandwidth: of this memory, bytes/s.
      port: bytes/s out of one port of the interconnect, in one direction.
      wrap: a side of a TPU slice closes to a ring if it is a multiple of this; whether every side has to be one.
    """

    platform: Literal["tpu", "gpu", "cpu"]
    flops: float | None = None
    memory: float | None = None
    bandwidth: float | None = None
    port: float | None = None
    wrap: tuple[int, bool] = (1, False)

    def link_bandwidth(self, sides: tuple[int, ...]) -> float | None:
        """Bytes/s out of a device in one direction, through all the ports that it has in a slice of these sides: two
        along a ring, and along a line one, which is all that its ends have. GPUs: NVLink, inside a node.
        """
        if self.port is None or self.platform != "tpu":
            return self.port
        size, all_sides = self.wrap
        rings = [side % size == 0 for side in sides]
        if all_sides:
            rings = [all(rings)] * len(sides)
        return self.port * sum(2 if ring else 1 for side, ring in zip(sides, rings, strict=True) if side > 1)


CHIPS = {
    "v5e": Chip("tpu", 197e12, 15.75 * GIB, 819 * GB, 50 * GB, wrap=(16, False)),
    "v5p": Chip("tpu", 459e12, 95.74 * GIB, 2765 * GB, 100 * GB, wrap=(4, True)),
    "v6e": Chip("tpu", 918e12, 31.25 * GIB, 1600 * GB, 100 * GB, wrap=(16, False)),
    "a100-80g": Chip("gpu", 312e12, 80 * GB, 2039 * GB, 300 * GB),
    "h100": Chip("gpu", 989e12, 80 * GB, 3350 * GB, 450 * GB),
    "h200": Chip("gpu", 989e12, 141 * GB, 4800 * GB, 450 * GB),
    "b200": Chip("gpu", 2250e12, 180 * GB, 8000 * GB, 900 * GB),
    "cpu": Chip("cpu"),
}
