"""Progress through a number of items: a bar in a terminal, lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
QUIET = 30  # seconds between two lines


class Progress:
    """Progress through items that come in several iterables, on stderr: "encode: 3,200 of 8,192 videos, 2 min left".

    Args:
      unit: what an item is, in the singular.
      total: number of items.
      done: how many of them were done before.
    """

    def __init__(self, task: str, unit: str, total: int, done: int = 0):
        self._task, self._unit, self._total, self._before, self._done = task, unit, total, done, done
        self._begun = self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            # leave=None: below the bar of a stage it is removed at its end.
            self._bar = tqdm(desc=task, unit=unit, total=total, initial=done, dynamic_ncols=True, leave=None)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, which are counted."""
        for item in items:
            yield item
            self._done += 1
            if self._bar is not None:
                self._bar.update()
            elif (now := time.monotonic()) - self._said >= QUIET:
                left = (now - self._begun) / (self._done - self._before) * (self._total - self._done) / 60
                words = f"{self._task}: {self._done:,} of {self._total:,} {self._unit}s, {left:,.0f} min left"
                print(words, file=sys.stderr, flush=True)
                self._said = now


def counted(items: Iterable[Item], task: str, unit: str, total: int) -> Iterator[Item]:
    """The items, while their `Progress` is shown; arguments as there."""
    yield from Progress(task, unit, total).over(items)
