"""Text alignment: agreement of clips of the shapes world with their captions."""

from collections.abc import Mapping, Sequence

import numpy as np

from dollar_jax.evaluate.measure import Clips, Column
from dollar_jax.evaluate.shapes import reading
from dollar_jax.rewards.fitting import Flags
from dollar_jax.rewards.shapes import agreement


def alignment(clips: Clips) -> dict[str, float]:
    """Share of clips that agree with their caption in all attributes, and shares for each attribute.

    Raises:
      UserError: a caption is not from the shapes world.
    """
    return shares(agreement(clips.once(reading), clips.captions))


def shares(agrees: Mapping[str, Flags]) -> dict[str, float]:
    """The values of `columns_of`, from whether each clip agrees with its caption by attribute, and in 'all'."""
    found = {name: float(np.mean(right)) for name, right in agrees.items()}
    return {"alignment": found.pop("all"), **found}


def columns_of(attributes: Sequence[str]) -> tuple[Column, ...]:
    """The columns of an alignment with captions that say these attributes."""
    told = {"alignment": "everything their caption says"}
    told |= {attribute: f"the {attribute} of their caption" for attribute in attributes}
    return tuple(
        Column(
            name,
            name.capitalize(),
            f"Share of clips that show {words}.",
            better="higher",
            unit="%",
            ideal=1.0,
            shown=name == "alignment",
        )
        for name, words in told.items()
    )


alignment.columns = columns_of(("colour", "shape", "motion", "background"))
