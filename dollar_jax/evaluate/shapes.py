"""How a model does in the shapes world: what its videos show, how clean they are, and how they lie beside data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dollar_jax.evaluate import general
from dollar_jax.evaluate.distribution import Subspace, fit, pooled_deviation
from dollar_jax.rewards import shapes

LEAST_CLIPS = 4 * general.COMPONENTS  # for `reference`


class Reference(NamedTuple):
    """What data look like, where captions do not say."""

    subspace: Subspace  # of the latents
    background: float  # deviation within captions, grey 0..1
    position: float  # deviation within captions of the middle of the path in x and y, pixels


def reference(
    frames: Float[np.ndarray, "n F H W 3"], latents: Float[np.ndarray, "n f h w c"], captions: Sequence[str]
) -> Reference:
    """What `measure` compares with, from real clips (0..1), their latents and their captions; 1,000 are plenty.

    Raises:
      ValueError: too few for `distribution.fit`.
    """
    return Reference(fit(latents), *_spread(shapes.read(frames), captions))


def measure(
    frames: Float[np.ndarray, "n F H W 3"],
    latents: Float[np.ndarray, "n f h w c"],
    captions: Sequence[str],
    reference: Reference,
) -> dict[str, float]:
    """The metrics of a model's clips (0..1), as many for each caption. None of them tells enough alone.

    Returns:
      alignment       share of clips that show all their captions say; of it alone: colour, shape, motion, background
      clean_db        PSNR in dB to the nearest valid rendering, mean over clips; rewards blur
      frechet         `distribution.frechet`, percent; 0 is data
      hf              `distribution.hf`; 1 is data
      vendi           Eq. 17 on pixels, mean over captions, and vendi_std; rewards noise
      spread          deviation within captions relative to data's, mean of the two next; 1 is data, 0 a collapse
      background_std  of the grey, 0..1, and
      position_std    of the middle of the path, in pixels: both among the clips that show a shape at all

    Raises:
      UserError: a caption that is not of the shapes world, or not as many clips of each.
    """
    agrees = {name: float(np.mean(right)) for name, right in shapes.alignment(frames, captions).items()}
    reading = shapes.read(frames)
    background, position = _spread(reading, captions)
    return {
        "alignment": agrees.pop("all"),
        **agrees,
        "clean_db": float(np.mean(reading.clean_db)),
        **general.measure(frames, latents, captions, reference.subspace),
        "spread": (background / reference.background + position / reference.position) / 2,
        "background_std": background,
        "position_std": position,
    }


def _spread(reading: shapes.Reading, captions: Sequence[str]) -> tuple[float, float]:
    found = reading.found
    groups = np.asarray(captions)[found].tolist()
    return pooled_deviation(reading.background[found, None], groups), pooled_deviation(reading.position[found], groups)
