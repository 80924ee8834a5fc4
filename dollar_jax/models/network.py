"""A network is pure functions on a plain dict of parameters; Flax NNX builds it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce
from operator import getitem
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dollar_jax.errors import UserError
from dollar_jax.models.linear import SCALE, Linear
from dollar_jax.sharding import STACKED
from dollar_jax.types import Key, Params


class CountedRngs(nnx.Rngs):
    """`nnx.Rngs` with one stream of keys, counted in Python; the keys are the same.

    `nnx.Rngs` counts in a variable. Under a trace each count asks a tracer for its sharding, and JAX reads all
    equations so far to say that it has none: two thirds of the time to build a large network.
    """

    def __init__(self, key: Key):
        self.key, self.count = key, 0

    def params(self) -> Key:
        self.count += 1
        return jax.random.fold_in(self.key, self.count - 1)


def stacked(build: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules as one, whose parameters have a leading axis of modules."""
    return nnx.vmap(lambda key: build(CountedRngs(key)))(jax.random.split(rngs.params(), count))


class Network(NamedTuple):
    """Pure functions of a network: `init(key) -> params`, `apply(params, *args, method="__call__") -> result`.

    `linears` are the paths of its layers that take an adapter, see `dollar_jax.models.lora`.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Any]
    linears: Sequence[str] = ()


def from_module(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """The `Network` of the module that `make` builds. The module may hold only parameters (no dropout, no statistics).

    The module is built abstractly: memory is allocated only in `init`. Each `Linear` in it takes an adapter.
    """
    module = nnx.eval_shape(lambda: make(CountedRngs(jax.random.key(0))))
    linears = tuple(_linears(module))

    @cache
    def graph(adapted: frozenset[str]) -> nnx.GraphDef:
        """The graph of the module with adapters at these paths."""
        changed = nnx.clone(module)
        for path, layer in _linears(changed).items():
            if path in adapted:
                layer.add_adapter()
        return nnx.graphdef(changed)

    @jax.jit  # one program, not one for each shape of a parameter
    def init(key: Key) -> Params:
        return _string_keys(nnx.to_pure_dict(nnx.state(make(CountedRngs(key)), nnx.Param)))

    def apply(params: Params, *args, method: str = "__call__", **kwargs):
        adapted = frozenset(path for path in linears if SCALE in _at(params, path))
        return getattr(nnx.merge(graph(adapted), nnx.restore_int_paths(params)), method)(*args, **kwargs)

    return Network(init, apply, linears)


def _linears(module: nnx.Module) -> dict[str, Linear]:
    """Path -> layer that takes an adapter."""
    return {"/".join(map(str, path)): part for path, part in nnx.iter_modules(module) if isinstance(part, Linear)}


def _at(tree: Params, path: str) -> Params:
    return reduce(getitem, path.split("/"), tree)


def parameter_shapes(network: Network) -> Params:
    """The network's parameters as ShapeDtypeStructs. Nothing runs, so that the devices need not exist (planning)."""
    return jax.eval_shape(lambda: network.init(jax.random.key(0)))


def narrowed(shapes: Params, dtype: DTypeLike) -> Params:
    """ShapeDtypeStructs with the large matrices in `dtype`, where that is smaller: stacks of kernels, and embeddings.

    A network that computes in `dtype` casts these to it at every use, so that its results stay the same bit for bit.
    Norms, modulations and the embedding of the time, which some networks compute in float32, keep their dtype.
    """

    def narrow(path, x):
        name = path[-1].key
        large = name == "embedding" or (name == "kernel" and x.ndim == STACKED)
        return x.update(dtype=dtype) if large and jnp.dtype(dtype).itemsize < x.dtype.itemsize else x

    return jax.tree_util.tree_map_with_path(narrow, shapes)


def _string_keys(tree: dict) -> dict:
    # A checkpoint does not distinguish 0 from "0", so lists of layers get strings as keys.
    return {str(key): _string_keys(value) if isinstance(value, dict) else value for key, value in tree.items()}


def make_config(kind: type, fields: Mapping[str, Any], name: str) -> Any:
    """Builds the dataclass `kind` of a network's sizes from the fields of a config.

    Raises:
      UserError: the dataclass lacks one of the fields.
    """
    if unknown := fields.keys() - {field.name for field in dataclasses.fields(kind)}:
        place = "/".join(kind.__module__.split(".")[1:])
        raise UserError(f"{name} has no {', '.join(sorted(unknown))}; see {kind.__name__} in {place}.py")
    return kind(**fields)


def count_parameters(params: Params) -> int:
    """Number of scalar parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
