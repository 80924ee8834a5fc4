"""Features of key frames, for metrics that compare videos by a network in place of pixels or latents."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float, UInt8

from dollar_jax.evaluate.measure import Clips
from dollar_jax.importing import resolve
from dollar_jax.pictures import evenly

Embed = Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n d"]]


def embedder(features: str, weights: str) -> Embed:
    """The function from frames to features that a config names. It is tried on a black frame: an error appears now.

    Args:
      features: import path; a plain name is in `dollar_jax.evaluate.features`.
      weights: file or folder with the weights of the features, "" for none.
    Raises:
      UserError: unknown features, or weights that do not fit.
    """
    embed = resolve(features, "dollar_jax.evaluate.features")
    if weights:
        embed = partial(embed, weights=weights)
    embed(np.zeros((1, 8, 8, 3), np.uint8))
    return embed


def named_by(features: str) -> str:
    """The ending of a column's key for features: `clip`, and `embed` for `my_fork.features:embed`."""
    return features.rpartition(":")[2]


def of_key_frames(clips: Clips, embed: Embed, key_frames: int) -> Float[np.ndarray, "n k d"]:
    """Features of `key_frames` evenly spaced frames of each clip."""
    rows = evenly(clips.pixels.shape[1], key_frames)
    return np.stack([embed(clip[rows]) for clip in clips.pixels])
