"""A parser for the text of a compiled program (HLO), limited to the parts that the planner needs."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# Bits of an element. Types that are not listed have their size in their name.
BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_TABLE = re.compile(r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n((?:\d+ .+\n)+)", re.M)
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=\{?([^,}\s]+"
    r"(?:, ?%[\w.\-]+)*)"
)


@dataclass(frozen=True)
class Array:
    """An array in a shape: number of bytes, and memory space of its layout (0: the device's main memory)."""

    bytes: int
    space: int


@dataclass(frozen=True)
class Instruction:
    """A line of a computation: `%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    inside: str  # the text between the parentheses
    attributes: str
    root: bool

    @cached_property
    def arrays(self) -> list[Array]:
        """The arrays of the result."""
        return [_array(*match) for match in _ARRAY.findall(self.shape)]

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.inside)

    @property
    def called(self) -> list[str]:
        """Computations that run as part of this instruction, not those applied to single elements."""
        if self.opcode not in ("fusion", "call", "while", "conditional", "async-start"):
            return []
        return [name.strip().lstrip("%") for group in _CALLED.findall(self.attributes) for name in group.split(",")]

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression on the attributes."""
        found = re.search(pattern, self.attributes)
        return found and found[1]


Computation = dict[str, Instruction]


class Frame(NamedTuple):
    """A call in Python: its file and function, and the number of the frame that called it ('0': none)."""

    file: str
    function: str
    caller: str


@dataclass(frozen=True)
class Module:
    """The computations of a program; `entry` is the name of the first one to run, `frames` has Python's by number."""

    computations: dict[str, Computation]
    entry: str
    frames: dict[str, Frame]

    def trips(self, loop: Instruction) -> int | None:
        """Number of iterations of a while loop. None: unknown.

        It is in an annotation of XLA, or in the condition `index < constant`: loops of JAX count from 0 by 1.
        """
        if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
        root = next(instruction for instruction in condition.values() if instruction.root)
        limits = [condition[name].inside for name in root.operands if condition[name].opcode == "constant"]
        if root.opcode != "compare" or "direction=LT" not in root.attributes or len(limits) != 1:
            return None
        return int(limits[0])

    def visits(self) -> Iterator[tuple[str, int, bool]]:
        """(computation, number of runs, whether it is inside a fusion), callers first.

        Every branch of a conditional counts as run, and a loop of unknown length as one run.
        """
        pending = [(self.entry, 1, False)]
        while pending:
            name, times, fused = pending.pop()
            yield name, times, fused
            for instruction in self.computations[name].values():
                inner = times * (self.trips(instruction) or 1) if instruction.opcode == "while" else times
                pending += [(called, inner, fused or instruction.opcode == "fusion") for called in instruction.called]

    def origin(self, instruction: Instruction) -> Iterator[Frame]:
        """The calls in Python that an instruction comes from, innermost first."""
        number = instruction.attribute(r"stack_frame_id=(\d+)")
        while frame := self.frames.get(number):
            yield frame
            number = frame.caller

    def unknown_loops(self) -> int:
        """Number of while loops of unknown length."""
        loops = (i for c in self.computations.values() for i in c.values() if i.opcode == "while")
        return sum(self.trips(loop) is None for loop in loops)


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`."""
    computations, current, entry = {}, None, None
    text = re.sub(r'\n(?="|\}\})', "", text)  # the metadata of a kernel has lines of its own
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif current is not None and (start := _INSTRUCTION.match(line)):
            instruction = _instruction(start[2], line[start.end() :], bool(start[1]))
            current[instruction.name] = instruction
    return Module(computations, entry, _frames(text))


def _frames(text: str) -> dict[str, Frame]:
    """The stack frames by number, from four tables of numbered lines; in the last two, of the numbers of others."""
    lines = {title: dict(line.split(" ", 1) for line in body.splitlines()) for title, body in _TABLE.findall(text)}
    frames = {}
    for number, line in lines.get("StackFrames", {}).items():
        place, caller = re.findall(r"=(\d+)", line)
        file, function = re.findall(r"=(\d+)", lines["FileLocations"][place])[:2]
        names = (lines[title][at].strip('"') for title, at in (("FileNames", file), ("FunctionNames", function)))
        frames[number] = Frame(*names, str(int(caller) - 1))  # XLA writes the caller's number plus 1
    return frames


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    return Instruction(name, shape, rest[:opening], rest[opening + 1 : closing], rest[closing + 1 :], root)


def _closing(text: str, opening: int) -> int:
    """Position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def _array(kind: str, sides: str, layout: str) -> Array:
    bits = BITS.get(kind) if kind in BITS else int(re.search(r"\d+", kind)[0])
    space = re.search(r"S\((\d+)\)", layout)
    elements = math.prod(int(side) for side in sides.split(",") if side)
    return Array(math.ceil(elements * bits / 8), int(space[1]) if space else 0)
