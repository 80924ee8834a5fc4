"""PickScore (arXiv 2305.01569)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dollar_jax.notation import Params, PerExample
from dollar_jax.rewards.clip import Clip, Embeddings, Videos, cropped


class PickScore:
    """score = exp(logit_scale) cos(image, text), the mean over frames: as in its authors' example, before the softmax
    over images; about 17 to 24.

    Args:
      checkpoint: the folder PickScore_v1, converted.
      tokenizer: a folder with that of CLIP; by default `tokenizer` in the checkpoint's.
      dtype: of the networks; bfloat16 takes half the memory.
    Raises:
      UserError: one of them is not there.
    """

    def __init__(self, checkpoint: str, tokenizer: str = "", dtype: str = "float32"):
        self._clip = Clip(checkpoint, dtype, tokenizer)
        self.params = self._clip.params

    def prepare(self, captions: Sequence[str]) -> dict[str, Embeddings]:
        """Unit embeddings [b e]."""
        return {"text": self._clip.texts(captions)}

    def score(self, frames: Videos, prepared: dict[str, Array | np.ndarray], params: Params) -> PerExample:
        """Of videos 0..1; the rounding to 8 bits in between lets the gradient through."""
        images = self._clip.frames(params, frames, cropped)
        return jnp.exp(params["logit_scale"]) * jnp.einsum("bfe,be->bf", images, prepared["text"]).mean(1)


pickscore = PickScore  # its name in a config
