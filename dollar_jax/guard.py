"""The guard against over-optimisation: picks the best acceptable checkpoint of a run, and ends the run.

A reward that is optimised for long enough stops to mean what it was chosen for (Fig. 9). So checkpoints are evaluated
on held-out prompts by two metrics: the true reward, and a second metric that the reward does not see.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dollar_jax.errors import UserError

PREFIX = "held_out/"
REWARD = PREFIX + "reward"
Line = Mapping[str, Any]  # a line of metrics.jsonl; None stands for a value that is not finite


class Verdict(NamedTuple):
    """Result of `assess`."""

    best: int | None  # step of the best checkpoint; None if nothing was measured
    stop: bool  # whether to end the run


def within(values: Sequence[float], metric: str, tolerance: float) -> bool:
    """Whether the last value of a metric is worse than the best value by at most `tolerance`.

    The tolerance is absolute, in the metric's own units: relative to a very good best value, it would be smaller than
    the metric's noise.

    Args:
      metric: name of the metric; with a minus in front, smaller is better.
    """
    sign = 1 if metric.startswith("-") else -1
    return sign * values[-1] <= min(sign * value for value in values) + tolerance


def score(history: Sequence[Line], config: ConfigDict) -> float:
    """True reward of the last measurement, or -inf if the guard's metric is out of its tolerance or not finite.

    Args:
      history, config: see `assess`.
    Raises:
      UserError: the guard's metric has no value before the first update.
    """
    name = PREFIX + config.metric.removeprefix("-")
    values, reward = [line[name] for line in history], history[-1][REWARD]
    if not _finite(values[0]):  # it would not accept a single checkpoint
        raise UserError(
            f"guard.metric={config.metric} has no value before the first update: choose another one, or raise"
            " held_out.videos_per_caption (Vendi takes two videos of a caption)"
        )
    if not _finite(values[-1]) or not _finite(reward):
        return -math.inf
    return reward if within(list(filter(_finite, values)), config.metric, config.tolerance) else -math.inf


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)  # the log has None for a value that is not finite


def assess(history: Sequence[Line], config: ConfigDict) -> Verdict:
    """Picks the measurement with the largest `score`; the run stops after `patience` measurements without a larger one.

    Args:
      history: all measurements, oldest first, the first one before any update. Each is {"step": number of the last
        update, "held_out/NAME": value}.
      config: metric, a metric that the reward does not see (with a minus in front: smaller is better); tolerance, how
        much worse than its best value so far the metric may be; patience.
    """
    if not history:
        return Verdict(None, False)
    scores = [score(history[: count + 1], config) for count in range(len(history))]
    first = scores.index(max(scores))
    best = max(range(first, len(scores)), key=lambda number: (scores[number], number))  # of equals the checkpoint kept
    return Verdict(history[best]["step"] + 1, len(scores) - 1 - first >= config.patience)
