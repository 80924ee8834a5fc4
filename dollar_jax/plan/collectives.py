"""Collectives in a compiled program: the data that devices send to each other."""

import math
import re
from collections import Counter
from dataclasses import dataclass

from dollar_jax.plan.hlo import Computation, Instruction, Module

# kind: (bytes of the whole array that a group shares, as a function of operand bytes and devices of the group),
#       (share of the whole array that each device sends in a ring)
KINDS = {
    "all-gather": (lambda size, n: size * n, lambda n: (n - 1) / n),
    "reduce-scatter": (lambda size, n: size, lambda n: (n - 1) / n),
    "all-reduce": (lambda size, n: size, lambda n: 2 * (n - 1) / n),
    "all-to-all": (lambda size, n: size, lambda n: (n - 1) / n),
    "ragged-all-to-all": (lambda size, n: size, lambda n: (n - 1) / n),
    "collective-permute": (lambda size, n: size, lambda n: 1.0),
    "collective-broadcast": (lambda size, n: size, lambda n: 1.0),
}


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      group: number of devices in a group.
      whole: bytes of the array that a group gathers, reduces or exchanges.
      times: number of runs.
      operation: the operation in the Python program, as the compiler names it.
    """

    kind: str
    group: int
    whole: int
    times: int
    operation: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all runs."""
        return self.times * self.whole * KINDS[self.kind][1](self.group)


def collectives(module: Module, devices: int) -> list[Collective]:
    """All collectives between several devices in a program for `devices` devices."""
    found, seen = [], set()
    for name, times, fused in module.visits():
        computation = module.computations[name]
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            if fused:
                # A TPU overlaps a collective with several fusions, each of which repeats it.
                key = (kind, instruction.attribute(r"channel_id=(\d+)"), instruction.attribute(r'chain_id="(\d+)"'))
                if key[2] and key in seen:
                    continue
                seen.add(key)
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # its form on TPUs: an all-reduce, then each device keeps a slice
            group = group_size(instruction, devices)
            if group > 1:
                size = _operand_bytes(instruction, computation)
                operation = instruction.attribute(r'op_name="([^"]*)"') or ""
                found.append(Collective(kind, group, KINDS[kind][0](size, group), times, operation))
    return found


def group_size(instruction: Instruction, devices: int) -> int:
    """Number of devices in a group of a collective, in a program for `devices` devices.

    XLA writes groups as {{0,1},{2,3}}, as [4,2]<=[8], and as mesh['x'=2,'y'=4] {'y'}, the last form sometimes with
    device_ids=(...) before the axes.
    """
    if pairs := instruction.attribute(r"source_target_pairs=\{(\{.*?\})\}"):
        return 2 if any(a != b for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs)) else 1
    if first := instruction.attribute(r"replica_groups=\{\{([\d,]*)\}"):
        return len(first.split(","))
    if tiles := instruction.attribute(r"replica_groups=\[([\d,]+)\]<="):
        return int(tiles.split(",")[-1])
    if mesh := instruction.attribute(r"replica_groups=mesh\[([^\]]*)\]"):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']*)'=(\d+)", mesh)}
        axes = instruction.attribute(r"replica_groups=mesh\[[^\]]*\][^{]*\{([^}]*)\}")
        parts = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", axes)  # 'y':(1)2 is a part of an axis
        return math.prod(int(part) if part else sizes[axis] for axis, part in parts)
    return devices


def sent_by_kind(found: list[Collective]) -> dict[str, dict[str, int | float]]:
    """{kind: {instructions, runs, bytes}}: number of instructions, number of their runs, bytes that a device sends."""
    totals: dict[str, Counter] = {}
    for one in found:
        totals.setdefault(one.kind, Counter()).update(instructions=1, runs=one.times, bytes=one.sent)
    return {kind: dict(total) for kind, total in sorted(totals.items())}


def largest_gather(found: list[Collective]) -> int:
    """Bytes of the largest array that one all-gather assembles, 0 if there is no all-gather."""
    return max((one.whole for one in found if one.kind == "all-gather"), default=0)


def _operand_bytes(instruction: Instruction, computation: Computation) -> int:
    names = instruction.operands
    if instruction.opcode.startswith("collective-permute"):
        names = names[:1]  # the others are where to put it
    return sum(computation[name].bytes for name in names)
