"""Videos to latents and captions to conditions, once, before training; and conditions as columns of a dataset.

Rows of zeros behind the end of a caption are not stored: a prompt of 20 tokens takes 20 rows, not Wan's 512.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from dollar_jax.data.dataset import Example
from dollar_jax.types import Condition

CAPTIONS = 32  # a text encoder that is split over devices is gathered for every batch of captions
EXTRA = "text_extra_"  # in front of the name of a column with one of `Condition.extra`


def encode(
    examples: Iterable[Example], encode_video: Callable, encode_text: Callable, batch_size: int
) -> Iterator[Example]:
    """Encodes examples in their order; those of one shape should follow each other.

    Args:
      examples: {'video': uint8 [f H W 3], 'caption': str}, and perhaps 'file', which stays.
      encode_video: uint8 [b f H W 3] -> latents [b f h w c].
      encode_text: captions -> their condition.
      batch_size: the b of every call of `encode_video`; `encode_text` gets `caption_batch(batch_size)`. A short batch
        is filled up with repetitions.

    Yields:
      {'latents': float32 [f h w c], 'caption': str} and the columns of `to_columns`, floats in float16
    """
    for _, alike in itertools.groupby(examples, key=lambda example: example["video"].shape):
        while block := list(itertools.islice(alike, caption_batch(batch_size))):
            latents = _latents([example["video"] for example in block], encode_video, batch_size)
            told = _told([example["caption"] for example in block], encode_text, caption_batch(batch_size))
            for row, example, source in zip(latents, told, block, strict=True):
                yield {"latents": row, **example} | ({"file": source["file"]} if "file" in source else {})


def caption_batch(unit: int) -> int:
    """The number of captions in a batch: the first multiple of `unit` from `CAPTIONS` on."""
    return -(-CAPTIONS // unit) * unit


def encode_captions(captions: Iterable[str], encode_text: Callable, batch_size: int) -> Iterator[Example]:
    """Like `encode`, without videos: yields {'caption': str} and the columns of `to_columns`."""
    captions = iter(captions)
    while block := list(itertools.islice(captions, batch_size)):
        yield from _told(block, encode_text, batch_size)


def _latents(
    videos: Sequence[UInt8[np.ndarray, "f H W 3"]], encode_video: Callable, size: int
) -> Iterator[Float32[np.ndarray, "f h w c"]]:
    for start in range(0, len(videos), size):
        batch = videos[start : start + size]
        yield from np.asarray(encode_video(np.stack(_filled(batch, size))), np.float32)[: len(batch)]


def _told(captions: Sequence[str], encode_text: Callable, batch_size: int) -> Iterator[Example]:
    columns = to_columns(jax.tree.map(_stored, encode_text(_filled(captions, batch_size))))
    for row, caption in enumerate(captions):
        yield _cut({name: values[row] for name, values in columns.items()}) | {"caption": caption}


def _filled(block: Sequence, size: int) -> list:
    return [*block, *block[-1:] * (size - len(block))]


def _cut(example: Example) -> Example:
    """The example without the rows of its text behind the last token, if they are all zero. `padded` brings them back.

    One row is left at least.
    """
    end = max(1, len(example["text_mask"]) - int(np.argmax(example["text_mask"][::-1])))
    rest = example["text"][end:].view(np.uint16) & 0x7FFF  # without signs; NumPy is slow with float16 itself
    return example if rest.any() else {**example, "text": example["text"][:end]}


def padded(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The example with as many rows of text as its mask has; unchanged if it has no text."""
    if "text" not in example:
        return example
    text = example["text"]
    return {**example, "text": np.pad(text, ((0, len(example["text_mask"]) - len(text)), (0, 0)))}


def _stored(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float16 if np.issubdtype(values.dtype, np.floating) else values.dtype)


def to_columns(condition: Condition) -> dict[str, np.ndarray]:
    """The arrays of a condition by the names of a dataset's columns."""
    extra = {EXTRA + name: values for name, values in condition.extra.items()}
    return {"text": condition.embedding, "text_mask": condition.mask, **extra}


def from_columns(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example or a batch of a dataset with its condition in place of that one's columns, the inverse of
    `to_columns`; unchanged if it has none.
    """
    if "text" not in example:
        return dict(example)
    extra = {name.removeprefix(EXTRA): values for name, values in example.items() if name.startswith(EXTRA)}
    rest = {name: values for name, values in example.items() if not name.startswith("text")}
    return rest | {"condition": Condition(example["text"], example["text_mask"], extra)}
