"""Imports the functions that a config names: `consistency` from this package, or `my_fork.losses:hinge` from a fork."""

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from dollar_jax.errors import UserError

_trusted: set[str] = set()


def trust(modules: Iterable[str]) -> None:
    """Marks modules as trusted by the user: a checkpoint's card may then name networks in them."""
    _trusted.update(modules)


def is_trusted(module: str) -> bool:
    """Whether the user trusts this module."""
    return module in _trusted


def resolve(name: str, package: str) -> Callable:
    """Imports a function by name: `module:function`, or `NAME` as a short form of `package.NAME:NAME`.

    Raises:
      UserError: the module does not exist, or has no such function.
    """
    module, _, function = name.partition(":")
    if not function:
        module, function = f"{package}.{name}", name
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: there is no module {error.name!r}; is its folder on PYTHONPATH?") from error
    if not hasattr(found, function):
        raise UserError(f"{name}: the module {module} has no function {function!r}")
    return getattr(found, function)


@contextmanager
def without(module: str) -> Iterator[None]:
    """A library imported within this does not find the optional module, unless it has been imported before."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None
    try:
        yield
    finally:
        del sys.modules[module]
