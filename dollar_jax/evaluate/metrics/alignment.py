"""Text alignment: agreement of clips of the shapes world with their captions."""

import numpy as np

from dollar_jax.evaluate.measure import Clips, Column
from dollar_jax.evaluate.shapes import reading
from dollar_jax.rewards.shapes import agreement


def alignment(clips: Clips) -> dict[str, float]:
    """Share of clips that agree with their caption in all attributes, and shares for each attribute.

    Raises:
      UserError: a caption is not from the shapes world.
    """
    shares = {name: float(np.mean(right)) for name, right in agreement(clips.once(reading), clips.captions).items()}
    return {"alignment": shares.pop("all"), **shares}


alignment.columns = (
    Column(
        "alignment",
        "Alignment",
        "Share of clips that show everything their caption says.",
        better="higher",
        unit="%",
        ideal=1.0,
    ),
    *(
        Column(
            attribute,
            attribute.capitalize(),
            f"Share of clips that show the {attribute} of their caption.",
            better="higher",
            unit="%",
            ideal=1.0,
            shown=False,
        )
        for attribute in ("colour", "shape", "motion", "background")
    ),
)
