"""LAION's aesthetic predictors."""

from collections.abc import Sequence

from einops import rearrange

from dollar_jax.rewards.clip import Clip, Videos, cropped, load
from dollar_jax.types import Params, PerExample


class Aesthetic:
    """Aesthetic rating, about 1 to 10, predicted from the unit CLIP embedding of each frame; the mean over frames.

    VBench's aesthetic quality is a tenth of the linear predictor's rating.

    Args:
      clip: folder of the converted CLIP ViT-L/14 of OpenAI.
      head: folder of the converted linear predictor (sa_0_4_vit_l_14_linear.pth) or MLP
        (sac+logos+ava1-l14-linearMSE.pth).
      dtype: dtype of the networks; bfloat16 takes half the memory.
    Raises:
      UserError: a folder does not hold this network.
    """

    def __init__(self, clip: str, head: str, dtype: str = "float32"):
        self._clip = Clip(clip, dtype, tokenizer=None)
        self._head, params, _ = load(head, "aesthetic", dtype)
        self.params = {"clip": self._clip.params, "head": params}

    def prepare(self, captions: Sequence[str]) -> dict:
        """{}: the rating does not depend on the captions."""
        del captions
        return {}

    def score(self, frames: Videos, prepared: dict, params: Params) -> PerExample:
        """Ratings of videos with pixels in 0..1. Rounding to 8 bits passes the gradient straight through."""
        del prepared
        embeddings = rearrange(self._clip.frames(params["clip"], frames, cropped), "b f e -> (b f) e")
        return rearrange(self._head.apply(params["head"], embeddings), "(b f) -> b f", b=len(frames)).mean(1)


aesthetic = Aesthetic  # its name in a config
