"""Whether clips of the shapes world show what their captions say."""

import numpy as np

from dollar_jax.evaluate.measure import Clips, Column
from dollar_jax.evaluate.shapes import reading
from dollar_jax.rewards.shapes import agreement


def alignment(clips: Clips) -> dict[str, float]:
    """The share of clips that show all their captions say, and colour, shape, motion and background alone.

    Raises:
      UserError: a caption that is not of the shapes world.
    """
    shares = {name: float(np.mean(right)) for name, right in agreement(clips.once(reading), clips.captions).items()}
    return {"alignment": shares.pop("all"), **shares}


alignment.columns = (
    Column(
        "alignment",
        "Alignment",
        "Clips that show all that their caption says.",
        better="higher",
        unit="%",
        ideal=1.0,
    ),
    *(
        Column(
            attribute,
            attribute.capitalize(),
            f"Clips that show the {attribute} of their caption.",
            better="higher",
            unit="%",
            ideal=1.0,
            shown=False,
        )
        for attribute in ("colour", "shape", "motion", "background")
    ),
)
