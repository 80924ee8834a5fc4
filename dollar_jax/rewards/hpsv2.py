"""Human preference score v2 (arXiv 2306.09341)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dollar_jax.notation import Params, PerExample
from dollar_jax.rewards.clip import Clip, Embeddings, Videos, letterboxed


class HPSv2:
    """score = cos(image, text), the mean over frames: what `hpsv2.score` returns for an image, without a logit scale;
    about .2 to .3 for photographs.

    Args:
      checkpoint: HPS_v2_compressed.pt or HPS_v2.1_compressed.pt, converted.
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
        """Of videos 0..1; cos(image, text) has a gradient everywhere."""
        images = self._clip.frames(params, frames, letterboxed)
        return jnp.einsum("bfe,be->bf", images, prepared["text"]).mean(1)


hpsv2 = HPSv2  # its name in a config
