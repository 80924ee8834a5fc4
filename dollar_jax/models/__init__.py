"""Networks without I/O. Each module has `build(**config) -> Network`; nothing outside names an architecture."""

import inspect
import pkgutil
from typing import Any

from dollar_jax.errors import UserError
from dollar_jax.importing import is_trusted, resolve
from dollar_jax.models.network import Network

_MODULES = frozenset(module.name for module in pkgutil.iter_modules(__path__))


def build(architecture: str, config: dict, **options) -> Network:
    """The network of `architecture` (`cogvideox_dit`, or `my_fork.nets:build`) at the sizes in `config`.

    `options` are what changes how it computes but not what it is: dtype, remat.

    Architectures and sizes may be a stranger's, who wrote a card. So a network from outside is imported and called only
    if the user has given his word for its module (`importing.trust`), and only if it is a function made for that.

    Raises:
      UserError: there is no such network, it is not trusted, or it does not fit the sizes.
    """
    module, _, function = architecture.partition(":")
    built_in = not function
    if built_in:
        if module not in _MODULES:
            raise UserError(f"there is no network {architecture!r} here; one from outside is MODULE:FUNCTION")
        module, function = f"{__name__}.{module}", "build"
    elif not is_trusted(module):
        raise UserError(
            f"{architecture} is code from outside: if you know whose it is and want it to run, add --trust={module}"
        )
    make = resolve(f"{module}:{function}", "")
    if not inspect.isfunction(make) or not _says_network(inspect.signature(make).return_annotation):
        raise UserError(f"{architecture} is no function annotated as build(**config) -> Network: it is not called")
    try:
        inspect.signature(make).bind(**config, **options)
    except TypeError as error:
        raise UserError(f"{architecture} does not take the config of its card: {error}") from error
    try:
        network = make(**config, **options)
    except UserError:
        raise
    except Exception as error:
        if not built_in:
            raise  # the user's own code, to be mended where the traceback says
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{architecture} cannot be made with the sizes of its config: {reason[0][:200]}") from error
    if not isinstance(network, Network):
        raise UserError(f"{architecture} returned a {type(network).__name__}, wanted a dollar_jax.models Network")
    return network


def _says_network(annotation: Any) -> bool:
    """Whether it is `Network`, or these words where annotations are kept as text."""
    return annotation is Network or str(annotation).rpartition(".")[2] == Network.__name__
