"""LAION's aesthetic predictors."""

from collections.abc import Sequence

from einops import rearrange

from dollar_jax.rewards.clip import Clip, Videos, cropped, load
from dollar_jax.types import Params, PerExample


class Aesthetic:
    """The rating, about 1 to 10, that the predictor gives to the unit embedding of a frame, the mean over frames.
    VBench's aesthetic quality is a tenth of the linear predictor's.

    Args:
      clip: OpenAI's CLIP ViT-L/14, converted.
      head: the linear predictor sa_0_4_vit_l_14_linear.pth or the MLP sac+logos+ava1-l14-linearMSE.pth, converted.
      dtype: of the networks; bfloat16 takes half the memory.
    Raises:
      UserError: one of them is not there.
    """

    def __init__(self, clip: str, head: str, dtype: str = "float32"):
        self._clip = Clip(clip, dtype, tokenizer=None)
        self._head, params, _ = load(head, "aesthetic", dtype)
        self.params = {"clip": self._clip.params, "head": params}

    def prepare(self, captions: Sequence[str]) -> dict:
        """Nothing: it looks at frames alone."""
        del captions
        return {}

    def score(self, frames: Videos, prepared: dict, params: Params) -> PerExample:
        """Of videos 0..1; the rounding to 8 bits in between lets the gradient through."""
        del prepared
        embeddings = rearrange(self._clip.frames(params["clip"], frames, cropped), "b f e -> (b f) e")
        return rearrange(self._head.apply(params["head"], embeddings), "(b f) -> b f", b=len(frames)).mean(1)


aesthetic = Aesthetic  # its name in a config
