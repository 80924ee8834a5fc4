"""Networks without I/O. Each module is an architecture and has a function `build(**config) -> Network`.

No other package of dollar_jax but `convert` names an architecture.
"""

import inspect
import pkgutil
from typing import Any

from dollar_jax.errors import UserError, first_line
from dollar_jax.importing import is_trusted, resolve
from dollar_jax.models.network import Network

_MODULES = frozenset(module.name for module in pkgutil.iter_modules(__path__))


def build(architecture: str, config: dict, **options) -> Network:
    """Builds a network.

    Architecture and config may come from a stranger's card. So a network from outside is imported and called only if
    the user trusts its module (`importing.trust`) and it is a function annotated as `build(**config) -> Network`.

    Args:
      architecture: a module of this package (`cogvideox_dit`), or a function from outside (`my_fork.nets:build`).
      config: sizes of the network.
      **options: settings of the computation, such as dtype and remat, which leave the parameters as they are.
    Raises:
      UserError: the network does not exist or is not trusted, or does not take the config.
    """
    module, _, function = architecture.partition(":")
    built_in = not function
    if built_in:
        if module not in _MODULES:
            raise UserError(
                f"there is no network {architecture!r} here; name a network from outside as MODULE:FUNCTION"
            )
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
            raise  # the user's own code: the traceback shows the place
        raise UserError(f"{architecture} cannot be made with the sizes of its config: {first_line(error)}") from error
    if not isinstance(network, Network):
        raise UserError(f"{architecture} returned a {type(network).__name__}, wanted a dollar_jax.models Network")
    return network


def _says_network(annotation: Any) -> bool:
    """Whether a return annotation is `Network`, or its name as a string (postponed annotations)."""
    return annotation is Network or str(annotation).rpartition(".")[2] == Network.__name__
