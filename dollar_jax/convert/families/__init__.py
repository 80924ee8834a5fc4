"""The families of text-to-video models that are read from diffusers, planned for, and written back.

A new family is a module beside this one with a `FAMILY` (see `family.Family`), its networks in `dollar_jax.models`, and
a line in `FAMILIES`. Nothing else names its classes, sizes, schedulers or defaults.
"""

from collections.abc import Mapping
from typing import Any

from dollar_jax.card import Card
from dollar_jax.convert.families import cogvideox, wan
from dollar_jax.convert.families.family import Family
from dollar_jax.errors import UserError

FAMILIES: tuple[Family, ...] = (cogvideox.FAMILY, wan.FAMILY, wan.EXPERTS)


def by_pipeline(index: Mapping[str, Any]) -> Family | None:
    """The family of a pipeline, by the class and the transformers in its model_index.json; None for others."""
    second = index.get("transformer_2") not in (None, [None, None]) or index.get("boundary_ratio") is not None
    named = [family for family in FAMILIES if family.pipeline == index.get("_class_name")]
    return next((family for family in named if second == ("transformer_2" in family.folders)), next(iter(named), None))


def by_transformer(network: str) -> Family:
    """The family of a card, by the architecture of its transformer.

    Raises:
      UserError: the network belongs to none.
    """
    for family in FAMILIES:
        if family.component("transformer").network == network:
            return family
    known = ", ".join(family.component("transformer").network for family in FAMILIES)
    raise UserError(f"{network}: no other library has this transformer in a pipeline; known are {known}")


def public_models() -> dict[str, Card]:
    """The public models of all families by name, see `Family.public`."""
    return {name: card for family in FAMILIES for name, card in family.public.items()}
