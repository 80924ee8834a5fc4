"""FLOPs of a traced program, by objective and network.

XLA's own count takes the body of a loop once. This count walks the jaxpr: a matrix product or convolution takes 2 m n k
FLOPs, times the lengths of the scans around it. All other operations are negligible and left out, and so is what no
result depends on, such as a sample that no loss reads: the compiler removes it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

Label = Callable[[str], Any]  # path of named scopes around an operation -> label


def count(program: ClosedJaxpr, label: Label) -> Counter:
    """FLOPs of a program by label, summed over all devices.

    A conditional counts as its most costly branch. A loop of unknown length counts as one run; the key None has the
    number of such loops with FLOPs.
    """
    needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    return _count(needed, label)


def _count(jaxpr: Jaxpr | ClosedJaxpr, label: Label, path: str = "") -> Counter:
    total = Counter()
    for equation in _open(jaxpr).eqns:
        here = f"{path}/{equation.source_info.name_stack}"
        if equation.primitive.name in OPERATIONS:
            total[label(here)] += OPERATIONS[equation.primitive.name](equation)
            continue
        bodies = [_count(body, label, here) for body in _bodies(equation)]
        if equation.primitive.name == "cond":
            bodies = [max(bodies, key=lambda branch: sum(branch.values()))]
        for body in bodies:
            for key, value in body.items():
                total[key] += value * (_times(equation) if key is not None else 1)
        if equation.primitive.name == "while" and any(body.total() for body in bodies):
            total[None] += 1
    return total


def owner(parts: Sequence[str], groups: Sequence[str]) -> Label:
    """Labels (group, part) from the innermost of these names on an operation's path; 'other' and '' without a match.

    Under a gradient, a path looks like consistency/transpose(jvp(student)).
    """

    def label(path: str) -> tuple[str, str]:
        names = re.findall(r"[^/()\s]+", path)
        part = next((name for name in reversed(names) if name in parts), "other")
        return next((name for name in reversed(names) if name in groups), ""), part

    return label


def _dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: JaxprEqn) -> int:
    """FLOPs of a convolution. Products with the zeros of a dilated input (in gradients of strides) do not count."""
    kernel = equation.invars[1].aval.shape
    features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    products = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features
    return 2 * products // math.prod(equation.params["lhs_dilation"])


def _attention(products: int) -> Callable[[JaxprEqn], int]:
    """FLOPs of cuDNN's attention, whose products are hidden: queries [b n h d] by keys [b m h d], so many times."""

    def flops(equation: JaxprEqn) -> int:
        queries, keys = (x.aval.shape for x in equation.invars[:2])
        return 2 * products * math.prod(queries) * keys[1]

    return flops


OPERATIONS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _attention(2),
    "dot_product_attention_bwd_wrapper": _attention(5),
}


def _times(equation: JaxprEqn) -> int:
    """Number of times that an equation runs its body, summed over all devices."""
    parameters = equation.params
    match equation.primitive.name:
        case "scan":
            return parameters["length"]
        case "pallas_call":
            return math.prod(parameters["grid_mapping"].grid)
        case "shard_map":
            axes = parameters.get("newly_manual_axes", parameters.get("manual_axes"))  # which one: jax 0.10, before
            return math.prod(parameters["mesh"].shape[axis] for axis in axes)
    return 1


def _bodies(equation: JaxprEqn) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in equation.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if isinstance(body, Jaxpr | ClosedJaxpr):
                yield body


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
