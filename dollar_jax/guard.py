"""Over-optimisation seen and stopped: which of a run's checkpoints is the best that may be kept, and when to end it.

A reward that is optimised for long enough stops to mean what it was chosen for (Fig. 9). So a run is judged on prompts
of its own, by the true reward and by something that the reward does not see.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dollar_jax.errors import UserError

PREFIX = "held_out/"
REWARD = PREFIX + "reward"
Line = Mapping[str, Any]  # of the log; None where a value is not finite


class Verdict(NamedTuple):
    """See `assess`."""

    best: int | None  # updates done; None where nothing was measured
    stop: bool


def within(values: Sequence[float], metric: str, tolerance: float) -> bool:
    """Whether the last value of a metric is no worse than its best by more than `tolerance`, in its own units: a share
    of the best would be less than its noise where the best is good.

    Args:
      metric: its name; with a minus in front, smaller is better.
    """
    sign = 1 if metric.startswith("-") else -1
    return sign * values[-1] <= min(sign * value for value in values) + tolerance


def score(history: Sequence[Line], config: ConfigDict) -> float:
    """The last measurement's true reward, or -inf where the unseen metric of `config` has left its bounds.

    Raises:
      UserError: nothing has been measured under this name.
    """
    name = PREFIX + config.metric.removeprefix("-")
    if name not in history[0]:
        measured = sorted(line.removeprefix(PREFIX) for line in history[0] if line.startswith(PREFIX))
        raise UserError(f"guard.metric={config.metric} is not measured: {', '.join(measured)} are")
    values, reward = [line[name] for line in history], history[-1][REWARD]
    if not _finite(values[-1]) or not _finite(reward):
        return -math.inf
    return reward if within(list(filter(_finite, values)), config.metric, config.tolerance) else -math.inf


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)  # None: the log's word for what is not


def assess(history: Sequence[Line], config: ConfigDict) -> Verdict:
    """The measurement of the largest true reward within bounds, and whether the run has been out of them, or has not
    become better, for `patience` measurements in a row.

    Args:
      history: what was measured, oldest first, the first before any update: {"step": the last update's, "held_out/...":
        values}.
      config: metric, the unseen one, with a minus in front where smaller is better; tolerance, by how much it may be
        worse than at its best so far; patience.
    """
    if not history:
        return Verdict(None, False)
    scores = [score(history[: count + 1], config) for count in range(len(history))]
    best = max(range(len(scores)), key=scores.__getitem__)
    return Verdict(history[best]["step"] + 1, len(scores) - 1 - best >= config.patience)
