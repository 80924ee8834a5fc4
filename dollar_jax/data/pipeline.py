"""From a random-access source to the batches of one process: shuffled, endless, resumable."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from dollar_jax.data.dataset import Dataset, Example, Source
from dollar_jax.importing import UserError

BATCHES_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
EXAMPLES_AHEAD = grain.ReadOptions(num_threads=8, prefetch_buffer_size=16)


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
) -> grain.IterDataset[dict[str, np.ndarray]]:
    """Batches of examples, stacked by name; captions become an array of strings.

    Each epoch has its own order, the same on all processes, of which each reads its own share, as large as the others'.
    A dataset's videos and images take turns in proportion to their numbers; a batch holds one kind. The `get_state` and
    `set_state` of the iterator continue exactly.

    Args:
      source: its items are a function of the index alone.
      batch_size: of this process.
      epochs: how often to read the source, None for ever; what does not fill the last batch is dropped.

    Raises:
      UserError: a process's share does not fill one batch.
    """
    parts = _parts(source)
    shares = []
    for part in parts:
        share = len(part) // process_count
        if share < batch_size:
            raise UserError(
                f"{len(part)} examples are too few for {process_count} batches of {batch_size}, one a process"
            )
        order = grain.MapDataset.source(part).seed(seed).shuffle()
        own = order[process_index : share * process_count : process_count]
        shares.append(own.repeat(epochs).batch(batch_size, drop_remainder=True))
    mixed = shares[0] if len(shares) == 1 else grain.MapDataset.mix(shares, [len(part) for part in parts])
    return mixed.to_iter_dataset(BATCHES_AHEAD)


def in_order(source: Source) -> Iterator[Example]:
    """All examples once, read ahead by threads; those that are None are left out."""
    for part in _parts(source):
        yield from grain.MapDataset.source(part).to_iter_dataset(EXAMPLES_AHEAD)


def _parts(source: Source) -> Sequence[Source]:
    return source.parts if isinstance(source, Dataset) else [source]
