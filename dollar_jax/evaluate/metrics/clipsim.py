"""Text alignment of any videos: agreement of frames and caption by CLIP."""

from functools import partial

import jax
import numpy as np

from dollar_jax.errors import UserError
from dollar_jax.evaluate.measure import Clips, Column
from dollar_jax.pictures import evenly
from dollar_jax.rewards.clip import Clip, cropped


class ClipSim:
    """CLIPSIM (arXiv 2104.14806): 100 cos(frame, caption), mean over key frames and clips.

    Args:
      checkpoint: folder of a converted CLIP.
      tokenizer: folder of CLIP's tokenizer; "" for the folder `tokenizer` in the checkpoint.
      key_frames: number of frames, evenly spaced from the first to the last.
      dtype: dtype of the network; bfloat16 takes half the memory.
    Raises:
      UserError: no key frames; the checkpoint holds no CLIP, or the tokenizer is missing.
    """

    columns = (
        Column(
            "clipsim",
            "Text alignment (CLIP)",
            "100 times the cosine of CLIP's embeddings of frame and caption. CLIP hardly sees motion.",
            better="higher",
        ),
    )

    least_clips = 0

    def __init__(self, checkpoint: str, tokenizer: str = "", key_frames: int = 8, dtype: str = "float32"):
        if key_frames < 1:
            raise UserError(f"key_frames = {key_frames}: 1 or more")
        self._clip, self._key_frames = Clip(checkpoint, dtype, tokenizer), key_frames
        self._embed = jax.jit(partial(self._clip.frames, to_images=cropped))

    def fit(self, data: Clips | None):
        """Ignores real clips: the score of a model needs no reference."""
        del data
        return self._measure

    def _measure(self, clips: Clips) -> float:
        captions, index = np.unique(np.asarray(clips.captions), return_inverse=True)
        texts = np.asarray(self._clip.texts(captions.tolist()), np.float32)[index]
        rows = evenly(clips.pixels.shape[1], self._key_frames)
        frames = (clip[None, rows] / np.float32(255) for clip in clips.pixels)
        embedded = (np.asarray(self._embed(self._clip.params, clip)[0]) for clip in frames)
        return 100 * float(np.mean([images @ text for images, text in zip(embedded, texts, strict=True)]))


clipsim = ClipSim  # its name in a config
