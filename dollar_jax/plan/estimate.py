"""Compiles the programs of an iteration and measures the cost of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.stages import Compiled, Traced

from dollar_jax.compiling import LOW_EFFORT, OPTIONS, announced
from dollar_jax.errors import UserError, first_line
from dollar_jax.plan import cycles, flops, hlo
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
      flops: {(objective, part): FLOPs}, over all devices.
      recomputed: FLOPs of what checkpoints compute again, over all devices.
      cycles: {((objective, part), place, pass): cycles}, see `cycles.count`; empty if not asked for.
      unmeasured: number of runs of kernels whose cycles are unknown.
      unbounded: number of loops of unknown length, which count as one run.
      temporary: bytes on each device in addition to the arguments: activations, results that replace no argument, code,
        and the padding of the arguments in the chip's layout.
      traffic: bytes that each device reads from and writes to its memory; in an estimate only arguments and results.
      sent: bytes that each device sends over the interconnect.
      collectives: {kind: {instructions, runs, bytes}}.
      largest_gather: bytes of the largest array that one all-gather assembles.
      estimate: the program was compiled for CPUs, to stand for one for GPUs.
    """

    name: str
    times: int
    flops: Counter
    recomputed: int
    cycles: Counter
    unmeasured: int
    unbounded: int
    temporary: int
    traffic: int
    sent: float
    collectives: dict[str, dict[str, int | float]]
    largest_gather: int
    estimate: bool

    def bounds(self, chip: Chip, sides: tuple[int, ...], devices: int) -> dict[str, float] | None:
        """Lower bounds of one run in seconds, if all devices share the work: for arithmetic, memory and interconnect.

        In an estimate the program for CPUs may send float32 where that for GPUs sends bfloat16.
        """
        if chip.flops is None:
            return None
        links = chip.link_bandwidth(sides)
        sent = self.sent / 2 if self.estimate else self.sent
        return {
            "compute": self.flops.total() / devices / chip.flops,
            "memory": self.traffic / chip.bandwidth,
            "links": sent / links if sent else 0.0,
        }

    def predicted(self, chip: Chip, sides: tuple[int, ...]) -> float | None:
        """Seconds of one run that the compiler expects, plus its transfers as if nothing overlapped. None: unknown."""
        if not self.cycles or self.unmeasured:
            return None
        links = self.sent / chip.link_bandwidth(sides) if self.sent else 0.0
        return self.cycles.total() / chip.clock + links

    def as_dict(self) -> dict:
        """For JSON."""
        rows = [{"objective": group, "part": part, "flops": value} for (group, part), value in self.flops.items()]
        names = "objective", "part", "place", "pass", "cycles"
        costs = [dict(zip(names, (*label, *key, value), strict=True)) for (label, *key), value in self.cycles.items()]
        return vars(self) | {"flops": rows, "cycles": costs}


def compile_program(program: Program, platform: str, chip: Chip, predict: bool) -> tuple[Traced, Compiled]:
    """The traced and the compiled program, with `predict` compiled as for a run. Call it under `jax.set_mesh`.

    Args:
      platform: of the devices: cpu also for an estimate of a GPU.
      chip: what the devices are, or stand for.

    Raises:
      UserError: the compiler refuses the program.
    """
    options = OPTIONS[platform] | (LOW_EFFORT if platform == "tpu" and not predict else {})
    with announced(f"{program.name}: tracing and compiling"):
        traced = program.step.trace(*program.arguments)
        try:
            return traced, traced.lower().compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            room = f"the {chip.memory / 1e9:.1f} GB" if chip.memory else "the memory"
            raise UserError(
                f"{program.name}: the compiler refuses the program ({first_line(error)}), as it does if one"
                f" needs far more than {room} of a device: take more devices, or settings of docs/memory.md that save"
                " memory"
            ) from error


def measure(program: Program, groups: Sequence[str], chip: Chip, devices: Sequence[jax.Device], predict: bool) -> Cost:
    """Compiles one program for these devices and measures its cost. Call it under `jax.set_mesh`.

    Args:
      groups: names of objectives, which label the FLOPs.
      chip: what the devices are, or stand for.
      predict: compile at full effort, and count the cycles that the compiler expects.

    Raises:
      UserError: the compiler refuses the program.
    """
    traced, compiled = compile_program(program, devices[0].platform, chip, predict)
    label = flops.owner(PARTS, groups)
    counted = flops.count(traced.jaxpr, label)
    unbounded = counted.pop(None, 0)
    again = flops.count(traced.jaxpr, lambda path: cycles.RECOMPUTED in path)
    memory = compiled.memory_analysis()
    padding = max(0, memory.argument_size_in_bytes - device_bytes(program.arguments))
    outside = memory.argument_size_in_bytes + memory.output_size_in_bytes
    module = hlo.parse(compiled.as_text())
    expected = cycles.count(module, chip, label) if predict else Counter()
    found: list[Collective] = collectives(module, len(devices))
    estimate = chip.platform != devices[0].platform
    return Cost(
        name=program.name,
        times=program.times,
        flops=counted,
        recomputed=again[True],
        unmeasured=expected.pop(None, 0),
        cycles=expected,
        unbounded=unbounded + module.unknown_loops(),
        temporary=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
        + padding
        + workspace(module),
        traffic=outside if estimate else memory_traffic(module),
        sent=sum((one.sent for one in found), 0.0),
        collectives=sent_by_kind(found),
        largest_gather=largest_gather(found),
        estimate=estimate,
    )


def workspace(module: hlo.Module) -> int:
    """Bytes that cuDNN needs beside a program's own memory: it sums the gradient of the queries in float32.

    XLA learns of them on a GPU only. The first result of the attention's backward pass has the queries' shape.
    """
    target = r'custom_call_target="(__cudnn\$fmha\w*Backward)"'
    calls = (one for body in module.computations.values() for one in body.values() if one.attribute(target))
    return max((2 * call.arrays[0].bytes for call in calls), default=0)


def resident_bytes(iteration: Iteration) -> dict[str, dict[str, int]]:
    """{name: {device, host}}: bytes that stay in each device's memory, and in the host's memory for each device."""
    return {
        name: {"device": device_bytes(tree), "host": device_bytes(tree, "pinned_host")}
        for name, tree in iteration.resident.items()
    }
