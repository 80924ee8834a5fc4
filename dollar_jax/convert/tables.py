"""Key tables: how the tensors of a PyTorch state dict map onto our parameters, and the reader that applies one.

A table is a list of rules (pattern, path, transform). The pattern is a full-match regex on the PyTorch key; the path
may use its groups (`\\1`); a group named `layer` stacks: layer i of PyTorch is row i of our stacked parameter.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from dollar_jax.importing import UserError

Transform = Callable[[np.ndarray], np.ndarray]
Rule = tuple[str, str, Transform]


def same(x: np.ndarray) -> np.ndarray:
    """Biases, norms, embeddings."""
    return x


def linear(x: np.ndarray) -> np.ndarray:
    """[out, in] -> [in, out]."""
    return x.T


def convolution(x: np.ndarray) -> np.ndarray:
    """[out, in, *window] -> [*window, in, out], for any number of spatial axes."""
    return np.moveaxis(x, (0, 1), (-1, -2))


def linear_rules(names: Mapping[str, str]) -> list[Rule]:
    """Rules for linear layers: PyTorch module -> our module. `{layer}` in the former stands for the layer's number."""
    return [rule for name, path in names.items() for rule in _rules(name, path, ("kernel", linear))]


def norm_rules(names: Mapping[str, str]) -> list[Rule]:
    """Rules for norms: PyTorch module -> our module, as in `linear_rules`."""
    return [rule for name, path in names.items() for rule in _rules(name, path, ("scale", same))]


def _rules(name: str, path: str, weight: tuple[str, Transform]) -> list[Rule]:
    pattern = re.escape(name).replace(r"\{layer\}", r"(?P<layer>\d+)")
    return [(rf"{pattern}\.weight", f"{path}/{weight[0]}", weight[1]), (rf"{pattern}\.bias", f"{path}/bias", same)]


def convert(table: Sequence[Rule], state_dict: Mapping[str, np.ndarray], target: dict) -> dict:
    """Our parameters from a state dict of arrays.

    Args:
      table: the rules; each key must match exactly one.
      state_dict: PyTorch key -> array. Tied weights may come under all their names.
      target: nested dict of arrays or ShapeDtypeStructs: what the network needs. Dtypes are cast to the target's.
    Raises:
      UserError: all faults at once: keys that match no rule or several, that have no place, the wrong shape or a place
        that another key fills with other values; parameters or layers left unfilled.
    """
    filled = {_name(path): np.empty(leaf.shape, leaf.dtype) for path, leaf in jax.tree.leaves_with_path(target)}
    seen = {path: np.zeros(array.shape[:1], bool) for path, array in filled.items()}

    def fill(key: str, value: np.ndarray) -> None:
        matches = [(match, *rule) for pattern, *rule in table if (match := re.fullmatch(pattern, key))]
        if len(matches) != 1:
            raise UserError(f"{key} matches {len(matches)} rules")
        match, path, transform = matches[0]
        path, layer = match.expand(path), match.groupdict().get("layer")
        if path not in filled:
            raise UserError(f"{key} has no place: the network has no {path}")
        if layer is not None and int(layer) >= len(filled[path]):
            raise UserError(f"{key} has no place: the network has {len(filled[path])} layers")
        row = ... if layer is None else int(layer)
        place, again = filled[path][row], seen[path][row].any()
        seen[path][row] = True
        try:
            ours = transform(value).astype(place.dtype)
        except ValueError as error:
            raise UserError(f"{key} has shape {value.shape}, which does not fit {path}: {error}") from error
        if ours.shape != place.shape:
            raise UserError(f"{key} has shape {value.shape}, which makes {ours.shape}, but {path} is {place.shape}")
        if again and not np.array_equal(ours, place):
            raise UserError(f"{key} gives {path} other values than an earlier key")
        filled[path][row] = ours

    faults = []
    for key, value in state_dict.items():
        try:
            fill(key, value)
        except UserError as fault:
            faults.append(str(fault))
    for path, rows in seen.items():
        if not rows.all():
            faults.append(f"nothing fills {path}" + (f", layers {np.flatnonzero(~rows)}" if rows.any() else ""))
    if faults:
        raise UserError("the weights do not fit the network: " + "; ".join(faults))
    return jax.tree.map_with_path(lambda path, _: filled[_name(path)], target)


def _name(path: tuple) -> str:
    return "/".join(str(step.key) for step in path)
