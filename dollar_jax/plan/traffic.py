"""Memory traffic: bytes that a compiled program reads from and writes to the device's main memory."""

from collections.abc import Iterator

from dollar_jax.plan.hlo import Computation, Instruction, Module

FREE = (
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "constant",
    "while",
    "call",
    "conditional",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "opt-barrier",
)
SLICES = ("slice", "dynamic-slice")


def memory_traffic(module: Module) -> int:
    """Bytes that all instructions read and write, an estimate without caches and padding.

    A fusion counts as one instruction, and an instruction in a loop counts for each iteration. A slice of a larger
    array counts with its own size. Arrays whose layout is in another memory than the main one (a TPU's VMEM) do not
    count.
    """
    total = 0
    for name, times, fused in module.visits():
        if not fused:
            computation = module.computations[name]
            total += times * sum(_moved(instruction, computation, module) for instruction in computation.values())
    return total


def _moved(instruction: Instruction, computation: Computation, module: Module) -> int:
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0
    operands = [computation[name] for name in instruction.operands if name in computation]
    if instruction.opcode.removesuffix("-start") in SLICES:
        # The result of a start has its operands, then the slice.
        part = instruction.arrays[len(operands) if instruction.opcode.endswith("-start") else 0]
        return part.bytes * ((_main(operands[0]) > 0) + (part.space == 0))
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _main(operands[1])
    if instruction.opcode == "fusion":
        return _fusion(operands, module.computations[instruction.called[0]])
    read, written = sum(map(_main, operands)), _main(instruction)
    # The result of a start repeats its operands.
    return read + (max(written - read, 0) if instruction.opcode.endswith("-start") else written)


def _fusion(operands: list[Instruction], body: Computation) -> int:
    parameters = [x for x in body.values() if x.opcode == "parameter"]
    read = sum(min(_main(operands[int(x.inside)]), _read(x, body)) for x in parameters)
    return read + sum(_written(x, body) for x in body.values() if x.root)


def _read(parameter: Instruction, body: Computation) -> int:
    """Bytes that the body of a fusion reads of an operand."""
    total = 0
    for user in _users(parameter, body):
        if user.opcode == "bitcast":
            total += _read(user, body)
        elif user.opcode in SLICES and user.operands[0] == parameter.name:
            total += user.bytes
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != parameter.name:
            return parameter.bytes
    return total


def _written(result: Instruction, body: Computation) -> int:
    """Bytes that a fusion writes for a result."""
    if result.opcode == "tuple":
        return sum(_written(body[name], body) for name in result.operands)
    if result.opcode == "bitcast":
        return min(_main(result), _written(body[result.operands[0]], body))
    if result.opcode == "dynamic-update-slice":
        return body[result.operands[1]].bytes
    return _main(result)


def _users(instruction: Instruction, body: Computation) -> Iterator[Instruction]:
    return (user for user in body.values() if instruction.name in user.operands)


def _main(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays if array.space == 0)
