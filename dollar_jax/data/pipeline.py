"""Shuffled, endless, resumable batches from a random-access source. A process can read only its share of each batch."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np

from dollar_jax.data.dataset import Dataset, Example, Source
from dollar_jax.data.encoding import from_columns, padded
from dollar_jax.errors import UserError

BATCHES_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
EXAMPLES_AHEAD = grain.ReadOptions(num_threads=8, prefetch_buffer_size=16)


def batches(
    source: Source, batch_size: int, seed: int, share: int = 0, shares: int = 1, epochs: int | None = None
) -> grain.IterDataset[dict[str, Any]]:
    """Batches of examples, stacked by name; captions become an array of strings, and their embeddings a `Condition`.

    Each epoch has its own order. A batch holds either videos or images, and the two kinds alternate in proportion to
    their numbers. `get_state` and `set_state` of the iterator resume at the exact position, also with another number of
    shares.

    Args:
      source: a source whose items are a function of the index alone.
      batch_size: examples over all processes.
      seed: seed of the shuffling.
      share, shares: this process reads part `share` of `shares` equal parts of every batch.
      epochs: number of passes over the source, None: endless. Examples that do not fill the last batch are dropped.

    Raises:
      UserError: the source does not fill one batch, or the batch does not divide into shares.
    """
    if batch_size % shares:
        raise UserError(f"batch_size {batch_size} does not divide over the {shares} processes that read data")
    rows = slice(share * batch_size // shares, (share + 1) * batch_size // shares)
    parts = parts_of(source)
    kinds = []
    for part in parts:
        if len(part) < batch_size:
            raise UserError(f"{len(part)} examples are too few for a batch of {batch_size}")
        order = grain.MapDataset.range(len(part)).seed(seed).shuffle().repeat(epochs)
        kinds.append(order.batch(batch_size, drop_remainder=True).map(partial(_read, part, rows)))
    mixed = kinds[0] if len(kinds) == 1 else grain.MapDataset.mix(kinds, [len(part) for part in parts])
    return mixed.to_iter_dataset(BATCHES_AHEAD)


def _read(source: Source, rows: slice, indices: np.ndarray) -> dict[str, Any]:
    examples = [padded(source[int(index)]) for index in indices[rows]]
    return from_columns({name: np.stack([example[name] for example in examples]) for name in examples[0]})


def in_order(source: Source) -> Iterator[Example]:
    """All examples once, read ahead by threads; examples that are None are left out."""
    for part in parts_of(source):
        yield from grain.MapDataset.source(part).to_iter_dataset(EXAMPLES_AHEAD)


class Rows:
    """The examples of a source at these indices."""

    def __init__(self, source: Source, rows: Sequence[int]):
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example | None:
        return self._source[self._rows[index]]


def parts_of(source: Source) -> Sequence[Source]:
    """The parts of a dataset, or the source itself."""
    return source.parts if isinstance(source, Dataset) else [source]
