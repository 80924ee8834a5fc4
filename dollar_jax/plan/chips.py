"""Data sheets of accelerators. An entry is one device of JAX.

TPUs: cloud.google.com/tpu/docs/{v5e,v5p,v6e}. The interconnect there is the sum over all ports and both directions
(400, 1200, 800 GB/s). The memory here is the memory that the compiler allows a program. GPUs: NVIDIA's data sheets of
the SXM versions, without sparsity. NVLink there is the sum of both directions (A100 600, H100 and H200 900, B200 1800
GB/s).

A TPU's clock follows from its peak rate: a v5p has 8 matrix units of 128 x 128 cells, each of which multiplies and adds
once a cycle, and 459e12 / (8 x 128^2 x 2) = 1.75e9. Bundles of the attention kernel are by `benchmarks.kernels`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GB, GIB = 1e9, 2.0**30


@dataclass(frozen=True)
class Chip:
    """Properties of one device.

    Attributes:
      platform: tpu or gpu: programs are compiled for it, see `topology.make_devices`; cpu: this machine.
      flops: peak FLOP/s of dense bfloat16 products with float32 sums. None: unknown.
      memory: bytes. None: unknown.
      bandwidth: bytes/s of this memory.
      port: bytes/s of one port of the interconnect, in one direction.
      wrap: (number, whether): a side of a TPU slice is a ring if it is a multiple of the number, and, if the second is
        true, all other sides are too.
      clock: cycles a second. None: unknown.
      cores: cores that share a program.
      bundles: {(kernel, features of a value): instruction bundles for 1024 logits} of the attention kernels, fwd
        (forward) and dkv (gradient).
    """

    platform: Literal["tpu", "gpu", "cpu"]
    flops: float | None = None
    memory: float | None = None
    bandwidth: float | None = None
    port: float | None = None
    wrap: tuple[int, bool] = (1, False)
    clock: float | None = None
    cores: int = 1
    bundles: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def link_bandwidth(self, sides: tuple[int, ...]) -> float | None:
        """Bytes/s out of a device in one direction, through all of its ports in a slice with these sides.

        A device has two ports along a ring. Along a line it counts one, because the devices at the ends have only one.
        GPUs: NVLink inside a node.
        """
        if self.port is None or self.platform != "tpu":
            return self.port
        size, all_sides = self.wrap
        rings = [side % size == 0 for side in sides]
        if all_sides:
            rings = [all(rings)] * len(sides)
        return self.port * sum(2 if ring else 1 for side, ring in zip(sides, rings, strict=True) if side > 1)


# {(kernel, width of a head): instruction bundles for 1024 logits}
V5E = {("fwd", 64): 4.20, ("dkv", 64): 9.14, ("fwd", 128): 5.67, ("dkv", 128): 12.79}
V5P = {("fwd", 64): 4.16, ("dkv", 64): 8.85, ("fwd", 128): 5.62, ("dkv", 128): 12.77}
V6E = {("fwd", 64): 2.74, ("dkv", 64): 5.19, ("fwd", 128): 2.83, ("dkv", 128): 5.26}
CHIPS = {
    "v5e": Chip("tpu", 197e12, 15.75 * GIB, 819 * GB, 50 * GB, (16, False), 1.5e9, 1, V5E),
    "v5p": Chip("tpu", 459e12, 95.74 * GIB, 2765 * GB, 100 * GB, (4, True), 1.75e9, 2, V5P),
    "v6e": Chip("tpu", 918e12, 31.25 * GIB, 1600 * GB, 100 * GB, (16, False), 1.75e9, 1, V6E),
    "a100-80g": Chip("gpu", 312e12, 80 * GB, 2039 * GB, 300 * GB),
    "h100": Chip("gpu", 989e12, 80 * GB, 3350 * GB, 450 * GB),
    "h200": Chip("gpu", 989e12, 141 * GB, 4800 * GB, 450 * GB),
    "b200": Chip("gpu", 2250e12, 180 * GB, 8000 * GB, 900 * GB),
    "cpu": Chip("cpu"),
}
