"""Compiles the programs of an iteration and measures the cost of each."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jax.stages import Compiled, Traced

from dollar_jax.compiling import OPTIONS, progress
from dollar_jax.plan import flops, hlo
from dollar_jax.plan.chips import Chip
from dollar_jax.plan.collectives import Collective, collectives, largest_gather, sent_by_kind
from dollar_jax.plan.programs import Iteration, Program, device_bytes
from dollar_jax.plan.traffic import memory_traffic

PARTS = ("teacher", "student", "ema", "fake_score", "reward_model", "vae")


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a program.

    Attributes:
      name, times: see `Program`.
      compile_seconds: duration of the compilation on this machine.
      flops: {(objective, part): FLOPs}, over all devices.
      unbounded: number of loops of unknown length, which count as one run.
      temporary: bytes on each device in addition to the arguments: activations, results that replace no argument, code,
        and the padding of the arguments in the chip's layout.
      traffic: bytes that each device reads from and writes to its memory; for GPUs only arguments and results.
      sent: bytes that each device sends over the interconnect.
      collectives: {kind: {instructions, runs, bytes}}.
      largest_gather: bytes of the largest array that one all-gather assembles.
    """

    name: str
    times: int
    compile_seconds: float
    flops: Counter
    unbounded: int
    temporary: int
    traffic: int
    sent: float
    collectives: dict[str, dict[str, int | float]]
    largest_gather: int

    def bounds(self, chip: Chip, sides: tuple[int, ...], devices: int) -> dict[str, float] | None:
        """Lower bounds of one run in seconds, if all devices share the work: for arithmetic, memory and interconnect.

        For GPUs they come from the program for CPUs, which may send float32 where the GPU's program sends bfloat16.
        """
        if chip.flops is None:
            return None
        links = chip.link_bandwidth(sides)
        sent = self.sent / 2 if chip.platform == "gpu" else self.sent
        return {
            "compute": self.flops.total() / devices / chip.flops,
            "memory": self.traffic / chip.bandwidth,
            "links": sent / links if sent else 0.0,
        }

    def as_dict(self) -> dict:
        """For JSON."""
        rows = [{"objective": group, "part": part, "flops": value} for (group, part), value in self.flops.items()]
        return vars(self) | {"flops": rows}


def compile_program(program: Program, chip: Chip) -> tuple[Traced, Compiled]:
    """The traced and the compiled program. Call it under `jax.set_mesh`."""
    with progress(f"{program.name}: tracing and compiling"):
        traced = program.step.trace(*program.arguments)
        return traced, traced.lower().compile(compiler_options=OPTIONS[chip.platform])


def measure(program: Program, groups: Sequence[str], chip: Chip, devices: int) -> Cost:
    """Compiles one program for `devices` chips and measures its cost. Call it under `jax.set_mesh`.

    groups: names of objectives, which label the FLOPs.
    """
    start = time.perf_counter()
    traced, compiled = compile_program(program, chip)
    seconds = time.perf_counter() - start
    counted = flops.count(traced.jaxpr, flops.owner(PARTS, groups))
    unbounded = counted.pop(None, 0)
    memory = compiled.memory_analysis()
    padding = max(0, memory.argument_size_in_bytes - device_bytes(program.arguments))
    outside = memory.argument_size_in_bytes + memory.output_size_in_bytes
    module = hlo.parse(compiled.as_text())
    found: list[Collective] = collectives(module, devices)
    return Cost(
        name=program.name,
        times=program.times,
        compile_seconds=seconds,
        flops=counted,
        unbounded=unbounded + module.unknown_loops(),
        temporary=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
        + padding,
        traffic=outside if chip.platform == "gpu" else memory_traffic(module),
        sent=sum((one.sent for one in found), 0.0),
        collectives=sent_by_kind(found),
        largest_gather=largest_gather(found),
    )


def resident_bytes(iteration: Iteration) -> dict[str, dict[str, int]]:
    """{name: {device, host}}: bytes that stay in each device's memory, and in the host's memory for each device."""
    return {
        name: {"device": device_bytes(tree), "host": device_bytes(tree, "pinned_host")}
        for name, tree in iteration.resident.items()
    }
