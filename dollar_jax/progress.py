"""Progress through a number of items: a bar in a terminal, lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
QUIET = 30  # seconds between two lines


def counted(items: Iterable[Item], task: str, unit: str, total: int) -> Iterator[Item]:
    """The items, while the progress is on stderr: "encode: 3,200 of 8,192 videos, 2 min left".

    Args:
      unit: what an item is, in the singular.
      total: number of items.
    """
    if sys.stderr.isatty():
        # leave=None: below the bar of a stage it is removed at its end.
        yield from tqdm(items, desc=task, unit=unit, total=total, dynamic_ncols=True, leave=None)
        return
    begun = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - said >= QUIET:
            left = (now - begun) / done * (total - done) / 60
            print(f"{task}: {done:,} of {total:,} {unit}s, {left:,.0f} min left", file=sys.stderr, flush=True)
            said = now
