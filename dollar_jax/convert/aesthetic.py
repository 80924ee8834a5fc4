"""The files of LAION's aesthetic predictors: their sizes and their keys in our names."""

from collections.abc import Mapping
from typing import Any

from dollar_jax.convert.tables import Rule, linear, same
from dollar_jax.errors import UserError

LINEAR = ("",)  # before `weight` and `bias`
MLP = tuple(f"layers.{number}." for number in (0, 2, 4, 6, 7))  # the other numbers are dropout's


def table(config: Mapping[str, Any]) -> list[Rule]:
    """The rules for a network of `config`.

    Raises:
      UserError: no file has so many layers.
    """
    prefixes = {len(layers) + 1: layers for layers in (LINEAR, MLP)}.get(len(config["widths"]))
    if prefixes is None:
        raise UserError(
            f"aesthetic predictors have {len(LINEAR)} or {len(MLP)} layers: {config['widths']} fits neither"
        )
    return [
        rule
        for layer, prefix in enumerate(prefixes)
        for rule in (
            Rule(f"{prefix}weight", f"layers/{layer}/kernel", linear),
            Rule(f"{prefix}bias", f"layers/{layer}/bias", same),
        )
    ]


def config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The arguments of `models.aesthetic.build`, from the shapes of a file's tensors.

    Raises:
      UserError: it is neither the linear predictor nor the MLP.
    """
    for prefixes in (LINEAR, MLP):
        weights = [shapes.get(f"{prefix}weight", ()) for prefix in prefixes]
        if all(len(shape) == 2 for shape in weights):
            return {"widths": [weights[0][1], *(rows for rows, _ in weights)]}
    raise UserError(f"this is no aesthetic predictor of LAION: it has {', '.join(sorted(shapes)) or 'no tensors'}")
