"""Names in a config become functions: `consistency` of this package, or `my_fork.losses:hinge` of anybody's."""

import importlib
from collections.abc import Callable, Iterable

from dollar_jax.errors import UserError

_trusted: set[str] = set()


def trust(modules: Iterable[str]) -> None:
    """Takes the user's word for these modules: a checkpoint's card may name networks in them."""
    _trusted.update(modules)


def is_trusted(module: str) -> bool:
    """Whether the user gave his word for it."""
    return module in _trusted


def resolve(name: str, package: str) -> Callable:
    """The function that `name` names: `module:function`, or `module` for `package.module:module`.

    Raises:
      UserError: no such module or no such function in it.
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
