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
      state_dict: PyTorch key -> array.
      target: nested dict of arrays or ShapeDtypeStructs: what the network needs. Dtypes are cast to the target's.
    Raises:
      UserError: all faults at once: keys that match no rule or several, wrong shapes, parameters left unfilled.
    """
    flat = {"/".join(str(k.key) for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    filled = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flat.items()}
    missing = {path: set(range(leaf.shape[0])) for path, leaf in flat.items() if leaf.ndim}
    faults = []
    for key, value in state_dict.items():
        matches = [(m, path, f) for pattern, path, f in table if (m := re.fullmatch(pattern, key))]
        if len(matches) != 1:
            faults.append(f"{key} matches {len(matches)} rules")
            continue
        match, path, transform = matches[0]
        path = match.expand(path)
        if path not in flat:
            faults.append(f"{key} has no place: the network has no {path}")
            continue
        layer = match.groupdict().get("layer")
        rows = slice(None) if layer is None else int(layer)
        value = transform(value)
        if layer is not None and int(layer) >= flat[path].shape[0]:
            faults.append(f"{key}: the network has only {flat[path].shape[0]} layers")
        elif value.shape != filled[path][rows].shape:
            faults.append(f"{key} has shape {value.shape}, the network needs {filled[path][rows].shape} at {path}")
        else:
            filled[path][rows] = value
            missing[path] -= set(range(flat[path].shape[0])) if layer is None else {int(layer)}
    faults += [f"nothing fills {path}" for path, rows in missing.items() if rows]
    if faults:
        raise UserError("the weights do not fit the network: " + "; ".join(faults))
    return jax.tree_util.tree_map_with_path(lambda p, _: filled["/".join(str(k.key) for k in p)], target)
