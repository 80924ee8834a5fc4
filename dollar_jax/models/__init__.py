"""Networks without I/O. Each module has `build(**config) -> Network`; nothing outside names an architecture."""

from dollar_jax.importing import resolve
from dollar_jax.models.network import Network


def build(architecture: str, config: dict, **options) -> Network:
    """The network of `architecture` (`cogvideox_dit`, or `my_fork.nets:build`) at the sizes in `config`.

    `options` are what changes how it computes but not what it is: dtype, remat.
    """
    name = architecture if ":" in architecture else f"{__name__}.{architecture}:build"
    return resolve(name, __name__)(**config, **options)
