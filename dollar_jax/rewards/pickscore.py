"""PickScore (arXiv 2305.01569)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dollar_jax.rewards.clip import Preference, Videos, cropped
from dollar_jax.types import Params, PerExample


class PickScore(Preference):
    """exp(logit_scale) cos(image, text), before the softmax over images in the authors' example; about 17 to 24.

    Weights: the folder PickScore_v1, converted.
    """

    to_images = staticmethod(cropped)

    def score(self, frames: Videos, prepared: dict[str, Array | np.ndarray], params: Params) -> PerExample:
        """Scores of videos with pixels in 0..1. Rounding to 8 bits passes the gradient straight through."""
        return jnp.exp(params["logit_scale"]) * super().score(frames, prepared, params)


pickscore = PickScore  # its name in a config
