"""Videos to latents and captions to embeddings, once, before training."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dollar_jax.data.dataset import Example


def encode(
    examples: Iterable[Example], encode_video: Callable, encode_text: Callable, batch_size: int
) -> Iterator[Example]:
    """Encodes examples in their order; those of one shape should follow each other.

    Args:
      examples: {'video': uint8 [f H W 3], 'caption': str}.
      encode_video: uint8 [b f H W 3] -> latents [b f h w c].
      encode_text: captions -> embeddings [b l d] and the mask [b l] of real tokens.
      batch_size: the b of every call; a short batch is filled up with repetitions.

    Yields:
      {'latents': float32 [f h w c], 'text': float16 [l d], 'text_mask': bool [l], 'caption': str}
    """
    for _, alike in itertools.groupby(examples, key=lambda example: example["video"].shape):
        while block := list(itertools.islice(alike, batch_size)):
            filled = block + block[-1:] * (batch_size - len(block))
            captions = [example["caption"] for example in filled]
            latents = np.asarray(encode_video(np.stack([example["video"] for example in filled])), np.float32)
            text, text_mask = encode_text(captions)
            rows = zip(latents, np.asarray(text, np.float16), np.asarray(text_mask, bool), captions, strict=True)
            for row in itertools.islice(rows, len(block)):
                yield dict(zip(("latents", "text", "text_mask", "caption"), row, strict=True))
