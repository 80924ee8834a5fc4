"""Key tables: how the tensors of a PyTorch state dict map onto our parameters and back.

A table is a list of rules (theirs, ours, change): a PyTorch key, the path of our parameter, and the change of the
tensor. `{name}` in both stands for the same number. `{layer}` in the key alone stacks: layer i of PyTorch is row i of
our parameter.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import EllipsisType
from typing import NamedTuple

import jax
import numpy as np

from dollar_jax.errors import UserError
from dollar_jax.lazy import Lazy, lazy
from dollar_jax.types import Params

STACKED = "{layer}"


class Change(NamedTuple):
    """The change of a tensor from their layout to ours, and its inverse."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """See the module's docstring; `zeros` says what is wrong with a tensor of zeros, '' where nothing is."""

    theirs: str
    ours: str
    change: Change
    zeros: str = ""


same = Change(lambda x: x, lambda x: x)  # biases, norms, embeddings
linear = Change(np.transpose, np.transpose)  # [out, in] <-> [in, out]
# [out, in, *window] <-> [*window, in, out], for any number of spatial axes
convolution = Change(lambda x: np.moveaxis(x, (0, 1), (-1, -2)), lambda x: np.moveaxis(x, (-1, -2), (0, 1)))


def pointwise(axes: int) -> Change:
    """A convolution with a window of one along all its axes, [out, in, 1, ...] <-> [in, out]."""
    return Change(lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T.reshape(x.T.shape + (1,) * axes))


def linear_rules(names: Mapping[str, str]) -> list[Rule]:
    """Rules for linear layers: PyTorch module -> our module."""
    return [rule for name, path in names.items() for rule in layer_rules(name, path, "kernel", linear)]


def norm_rules(names: Mapping[str, str]) -> list[Rule]:
    """Rules for norms: PyTorch module -> our module."""
    return [rule for name, path in names.items() for rule in layer_rules(name, path, "scale", same)]


def convolution_rules(names: Mapping[str, str]) -> list[Rule]:
    """Rules for convolutions: PyTorch module -> our module."""
    return [rule for name, path in names.items() for rule in layer_rules(name, path, "kernel", convolution)]


def layer_rules(theirs: str, ours: str, weight: str, change: Change) -> list[Rule]:
    """Rules for a module with `weight`, which is `weight` in ours, and `bias`."""
    return [Rule(f"{theirs}.weight", f"{ours}/{weight}", change), Rule(f"{theirs}.bias", f"{ours}/bias", same)]


def match(template: str, text: str) -> dict[str, str] | None:
    """The number for each name in a template; None where the text does not fit it."""
    found = _pattern(template).fullmatch(text)
    return found and found.groupdict()


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(template)))


def convert(table: Sequence[Rule], state_dict: Mapping[str, np.ndarray], target: Params) -> Params:
    """`convert_lazily` at once: arrays from arrays, without shared memory."""
    return jax.tree.map(lambda x: np.array(x.read(), order="C"), convert_lazily(table, state_dict, target))


def convert_lazily(table: Sequence[Rule], state_dict: Mapping[str, np.ndarray | Lazy], target: Params) -> Params:
    """Our parameters from a state dict, as `Lazy` arrays. Their tensors are read when they are asked for.

    Args:
      table: the rules; each key must match exactly one.
      state_dict: PyTorch key -> array. Tied weights may come under all their names. They, and what must not be zeros,
        are read at once.
      target: the parameters of the network, as a nested dict of arrays or ShapeDtypeStructs. Only shapes are read:
        dtypes come from the state dict. Layers that differ in dtype get one that holds them all.
    Raises:
      UserError: all faults at once: keys that match no rule or several, that have no place, the wrong shape, zeros that
        their rule refuses, or a place that another key fills with other values; parameters or layers left unfilled.
    """
    shapes = {_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(target)}
    filled: dict[str, dict[int | EllipsisType, Lazy]] = {path: {} for path in shapes}
    dtypes: dict[str, np.dtype] = {}
    seen = {path: np.zeros(shape[:1], bool) for path, shape in shapes.items()}

    def fill(key: str) -> None:
        matches = [(fields, rule) for rule in table if (fields := match(rule.theirs, key)) is not None]
        if len(matches) != 1:
            raise UserError(f"{key} matches {len(matches)} rules")
        fields, rule = matches[0]
        path = rule.ours.format(**fields)
        if path not in shapes:
            raise UserError(f"{key} has no place: the network has no {path}")
        row = int(fields["layer"]) if STACKED in rule.theirs else ...
        if row is not ... and row >= shapes[path][0]:
            raise UserError(f"{key} has no place: the network has {shapes[path][0]} layers")
        seen[path][row] = True
        tensor = lazy(state_dict[key])
        if rule.zeros and not tensor.read().any():
            raise UserError(f"{key} is all zeros: {rule.zeros}")
        try:
            ours = tensor.through(rule.change.to_ours)
        except ValueError as error:
            raise UserError(f"{key} has shape {tensor.shape}, which does not fit {path}: {error}") from error
        wanted = shapes[path] if row is ... else shapes[path][1:]
        if ours.shape != wanted:
            raise UserError(f"{key} has shape {tensor.shape}, which makes {ours.shape}, but {path} is {wanted}")
        dtypes[path] = np.promote_types(dtypes.get(path, ours.dtype), ours.dtype)
        earlier, filled[path][row] = filled[path].get(row), ours
        if earlier and not np.array_equal(*(x.read().astype(dtypes[path], copy=False) for x in (ours, earlier))):
            raise UserError(f"{key} gives {path} other values than an earlier key")

    faults = []
    for key in state_dict:
        try:
            fill(key)
        except UserError as fault:
            faults.append(str(fault))
    for path, rows in seen.items():
        if not rows.all():
            faults.append(f"nothing fills {path}" + (f", layers {np.flatnonzero(~rows)}" if rows.any() else ""))
    if faults:
        raise UserError("the weights do not fit the network: " + "; ".join(faults))

    def parameter(path: tuple, _) -> Lazy:
        name = _name(path)
        return Lazy(shapes[name], dtypes[name], partial(_join, shapes[name], dtypes[name], filled[name]))

    return jax.tree.map_with_path(parameter, target)


def _join(shape: tuple[int, ...], dtype: np.dtype, rows: Mapping[int | EllipsisType, Lazy]) -> np.ndarray:
    """Reads a parameter, whole or row by row."""
    if ... in rows:
        return rows[...].read().astype(dtype, copy=False)
    joined = np.empty(shape, dtype)
    for row, values in rows.items():
        joined[row] = values.read()
    return joined


def restore_lazily(table: Sequence[Rule], params: Params) -> dict[str, Lazy]:
    """The state dict of our parameters, arrays or `Lazy`: the inverse of `convert_lazily`.

    A stacked parameter is read for its first row and stays in memory until a row of another one is asked for. So rows
    should be asked for in the order of the result. Tied weights come under the first of their names in the table.
    """
    state_dict: dict[str, Lazy] = {}
    held: list = []  # the stacked parameter that was read last, and its values

    def row(leaf: Lazy, layer: int) -> np.ndarray:
        if not held or held[0] is not leaf:
            held.clear()  # so that two are never in memory
            held.extend((leaf, leaf.read()))
        return held[1][layer].copy()  # a view would keep all rows

    for path, leaf in jax.tree.leaves_with_path(jax.tree.map(lazy, params)):
        matches = ((match(rule.ours, _name(path)), rule) for rule in table)
        fields, rule = next((fields, rule) for fields, rule in matches if fields is not None)
        if STACKED in rule.theirs:
            for layer in range(leaf.shape[0]):
                ours = Lazy(leaf.shape[1:], leaf.dtype, partial(row, leaf, layer))
                state_dict[rule.theirs.format(**fields, layer=layer)] = ours.through(rule.change.to_theirs)
        else:
            state_dict[rule.theirs.format(**fields)] = leaf.through(rule.change.to_theirs)
    return state_dict


def _name(path: tuple) -> str:
    return "/".join(str(step.key) for step in path)
