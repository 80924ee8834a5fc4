"""Over-optimisation seen and stopped: which of a run's checkpoints is the best that may be kept, and when to end it.

A reward that is optimised for long enough stops to mean what it was chosen for (Fig. 9). So a run is judged on prompts
of its own, by the true reward and by something that the reward does not see.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

PREFIX = "held_out/"
REWARD = PREFIX + "reward"
Line = Mapping[str, Any]  # of the log; None where a value is not finite


class Verdict(NamedTuple):
    """See `judge`."""

    best: int | None  # updates done; None where nothing was measured
    stop: bool


def within(start: float, value: float, metric: str, tolerance: float) -> bool:
    """Whether a metric is no worse than at the start by more than the fraction `tolerance` of it.

    Args:
      metric: its name; with a minus in front, smaller is better.
    """
    worse = (value - start) * (1 if metric.startswith("-") else -1)
    return worse <= tolerance * abs(start)


def score(history: Sequence[Line], config: ConfigDict) -> float:
    """The last measurement's true reward, or -inf where the unseen metric of `config` has left its bounds.

    Raises:
      KeyError: nothing has been measured under this name.
    """
    name = PREFIX + config.metric.removeprefix("-")
    first, last = history[0], history[-1]
    if None in (first[name], last[name], last[REWARD]):  # the log's word for what is not finite
        return -math.inf
    return last[REWARD] if within(first[name], last[name], config.metric, config.tolerance) else -math.inf


def judge(history: Sequence[Line], config: ConfigDict) -> Verdict:
    """The measurement of the largest true reward within bounds, and whether the run has been out of them, or has not
    become better, for `patience` measurements in a row.

    Args:
      history: what was measured, oldest first, the first before any update: {"step": the last update's, "held_out/...":
        values}.
      config: metric, the unseen one, with a minus in front where smaller is better; tolerance, the fraction of its
        start by which it may become worse; patience.
    """
    if not history:
        return Verdict(None, False)
    scores = [score(history[: count + 1], config) for count in range(len(history))]
    best = max(range(len(scores)), key=scores.__getitem__)
    return Verdict(history[best]["step"] + 1, len(scores) - 1 - best >= config.patience)
