"""Videos to latents and captions to conditions, once, before training; and conditions as columns of a dataset."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dollar_jax.data.dataset import Example
from dollar_jax.types import Condition

EXTRA = "text_extra_"  # in front of the name of a column with one of `Condition.extra`


def encode(
    examples: Iterable[Example], encode_video: Callable, encode_text: Callable, batch_size: int
) -> Iterator[Example]:
    """Encodes examples in their order; those of one shape should follow each other.

    Args:
      examples: {'video': uint8 [f H W 3], 'caption': str}.
      encode_video: uint8 [b f H W 3] -> latents [b f h w c].
      encode_text: captions -> their condition.
      batch_size: the b of every call; a short batch is filled up with repetitions.

    Yields:
      {'latents': float32 [f h w c], 'caption': str} and the columns of `to_columns`, floats in float16
    """
    for _, alike in itertools.groupby(examples, key=lambda example: example["video"].shape):
        while block := list(itertools.islice(alike, batch_size)):
            filled = block + block[-1:] * (batch_size - len(block))
            captions = [example["caption"] for example in filled]
            latents = np.asarray(encode_video(np.stack([example["video"] for example in filled])), np.float32)
            columns = {"latents": latents, **to_columns(jax.tree.map(_stored, encode_text(captions)))}
            for row, caption in enumerate(captions[: len(block)]):
                yield {name: values[row] for name, values in columns.items()} | {"caption": caption}


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
