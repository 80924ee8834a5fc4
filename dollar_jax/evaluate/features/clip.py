"""CLIP's embeddings of frames: they say what a frame shows, and little about its texture."""

from collections.abc import Callable
from functools import cache, partial

import jax
import numpy as np
from jaxtyping import Float, UInt8

from dollar_jax.errors import UserError
from dollar_jax.rewards.clip import Clip, cropped
from dollar_jax.types import Params


def clip(frames: UInt8[np.ndarray, "n h w 3"], weights: str = "") -> Float[np.ndarray, "n e"]:
    """Unit embeddings of the middle square of frames of any size, with transformers' preprocessing.

    Args:
      weights: folder of a converted CLIP.
    Raises:
      UserError: the folder is missing, or holds no CLIP.
    """
    if not weights:
        raise UserError("the features clip need weights: a CLIP, converted by python -m dollar_jax.convert from_torch")
    params, embed = _load(weights)
    return np.asarray(embed(params, frames[None] / np.float32(255))[0])


@cache
def _load(folder: str) -> tuple[Params, Callable]:
    model = Clip(folder, "float32", None)
    return model.params, jax.jit(partial(model.frames, to_images=cropped))
