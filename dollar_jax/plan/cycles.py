"""The time that the TPU compiler expects of a program: cycles of its instructions, by part of the network.

The compiler writes into an instruction the cycles that it expects, for all cores of a chip together. It knows none for
kernels: those of the attention are counted from the schedules that it makes for them (`Chip.bundles`), a cycle for each
bundle. Nothing overlaps in this sum, and transfers between chips are not in it.
"""

import math
import re
from collections import Counter

from dollar_jax.plan.chips import Chip
from dollar_jax.plan.flops import Label
from dollar_jax.plan.hlo import Instruction, Module

KERNEL = re.compile(r"splash_mha_(fwd|dkv)")
LIBRARIES = re.compile(r"/(jax|flax|einops|optax)/")
RECOMPUTED = "rematted_computation"  # the scope of what a checkpoint computes again


def count(module: Module, chip: Chip, label: Label) -> Counter:
    """{(label, place, pass): cycles} of a program.

    A place is the innermost two functions outside of `LIBRARIES`; '' if the compiler made the instruction itself. The
    pass is forward, recomputed or backward. The label is that of the operation's named scopes. The key None has the
    number of runs of kernels whose cycles are unknown.
    """
    total = Counter()
    for name, times, fused in module.visits():
        for instruction in () if fused else module.computations[name].values():
            if instruction.attribute(r'custom_call_target="(tpu_custom_call)"'):
                cycles = kernel_cycles(instruction, chip)
                if cycles is None:
                    total[None] += times
                    continue
            else:
                cycles = int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
            if cycles:
                scopes = instruction.attribute(r'op_name="([^"]*)"') or ""
                total[label(scopes), _place(module, instruction), _pass(scopes)] += times * cycles
    return total


def kernel_cycles(instruction: Instruction, chip: Chip) -> float | None:
    """Cycles of one run of an attention kernel, shared by the chip's cores. None: another kernel, or one not measured.

    Its operands are two tables, then queries [.., h, e, n], keys [.., h, e, m] and values [.., h, d, m].
    """
    kernel = KERNEL.match(instruction.name)
    shapes = re.findall(r"bf16\[([\d,]+)\]", instruction.attribute(r"operand_layout_constraints=\{(.*?)\}, \w+=") or "")
    if not kernel or len(shapes) < 3:
        return None
    queries, _, values = ([int(side) for side in shape.split(",")] for shape in shapes[:3])
    bundles = chip.bundles.get((kernel[1], values[-2]))
    logits = math.prod(queries[:-2]) * queries[-1] * values[-1]
    return None if bundles is None else bundles * logits / 1024 / chip.cores


def _place(module: Module, instruction: Instruction) -> str:
    functions = [frame.function for frame in module.origin(instruction) if not LIBRARIES.search(frame.file)]
    return " in ".join(re.sub(r"<locals>\.|\.__call__", "", function) for function in functions[:2])


def _pass(scopes: str) -> str:
    if RECOMPUTED in scopes:
        return "recomputed"
    return "backward" if "transpose(" in scopes else "forward"
