"""The metrics that a config names, made once, compared with real clips and called with a model's."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dollar_jax.errors import UserError
from dollar_jax.importing import resolve

BETTER = ("higher", "lower", "near", "")
# Keys that a row of a report, or the log, has beside those of metrics.
TAKEN = {
    *("model", "objectives", "steps", "calls", "videos", "variant", "seeds", "std", "score"),
    *("reward", "reward_standard_error", "reward_chain", "reward_estimate", "reward_correlation"),
    *("diffusion_seconds_per_video", "diffusion_seconds_per_video_std"),
}


@dataclass(frozen=True)
class Column:
    """A number that a metric measures, and how people are shown it.

    Attributes:
      key: its name in report.json, and in the log behind `held_out/`.
      label: its heading.
      meaning: a sentence or two for somebody who has not read the paper.
      better: "higher", "lower", "near" for nearness to `ideal`, "" for none of them.
      unit: "%" for a share in 0..1, "s", "dB", or another word to stand behind the number.
      ideal: the best value. None: real data's, where "near" is better; else there is no best.
      shown: whether tables, page and console line have it; all others have it anyway.
    Raises:
      UserError: a key that is no name, or no such direction.
    """

    key: str
    label: str
    meaning: str
    better: str = ""
    unit: str = ""
    ideal: float | None = None
    shown: bool = True

    def __post_init__(self):
        if not self.key.isidentifier():
            raise UserError(f"the column {self.label}: its key is letters, digits and _, not {self.key!r}")
        if self.better not in BETTER:
            raise UserError(f"the column {self.key}: better is one of {BETTER}, not {self.better!r}")

    @property
    def good(self) -> str:
        """Which numbers are, in two words; "" if none are."""
        if self.better == "near":
            return "near data" if self.ideal is None else f"near {self.ideal:g}"
        return f"{self.better} is better" if self.better else ""


@dataclass(frozen=True)
class Clips:
    """Videos, real ones or a model's, as metrics see them: frames in 0..1, latents and captions."""

    frames: Float[np.ndarray, "n F H W 3"]
    latents: Float[np.ndarray, "n f h w c"]
    captions: Sequence[str]
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, function: Callable, *options: Hashable) -> Any:
        """function(clips, *options), computed for the first metric that asks, and kept for the others."""
        if (function, options) not in self._made:
            self._made[function, options] = function(self, *options)
        return self._made[function, options]


Value = float | Mapping[str, float]  # of the only column, or of all by their keys


class _Metric(NamedTuple):
    columns: Sequence[Column]
    least_clips: int  # real ones to compare with
    fit: Callable[[Clips], Callable[[Clips], Value]]


class Metrics:
    """Metrics by import path, as `dollar_jax.evaluate.metrics` describes them.

    Args:
      named: import path -> options.
    Attributes:
      columns: of all metrics, in their order.
      least_clips: import path -> how many real clips the metric compares with at least.
    Raises:
      UserError: there is no such metric, or not with these options; it declares no columns; two have the same key.
    """

    def __init__(self, named: Mapping[str, Mapping[str, Any]]):
        self._metrics = {name: _make(name, dict(options)) for name, options in named.items()}
        self.columns = tuple(column for metric in self._metrics.values() for column in metric.columns)
        self.least_clips = {name: metric.least_clips for name, metric in self._metrics.items()}
        owners = dict.fromkeys(TAKEN, "")
        for name, metric in self._metrics.items():
            for column in metric.columns:
                if column.key in owners:
                    other = f"that of metric {owners[column.key]} too" if owners[column.key] else "taken"
                    raise UserError(f"metric {name}: its key {column.key} is {other}: give its column another one")
                owners[column.key] = name

    def fit(self, data: Clips) -> Callable[[Clips], dict[str, float]]:
        """(a model's clips) -> the value of every column by its key, compared with real clips.

        Raises:
          UserError: when called, where a metric returns other than its columns.
        """
        fitted = {name: metric.fit(data) for name, metric in self._metrics.items()}

        def measure(clips: Clips) -> dict[str, float]:
            values = {}
            for name, metric in fitted.items():
                values |= _checked(name, [column.key for column in self._metrics[name].columns], metric(clips))
            return values

        return measure


def _make(name: str, options: dict[str, Any]) -> _Metric:
    found = resolve(name, "dollar_jax.evaluate.metrics")
    is_class = isinstance(found, type)
    try:
        signature = inspect.signature(found)
        reads_data = not is_class and "data" in signature.parameters
        signature.bind(*[None] * (not is_class), **({"data": None} if reads_data else {}), **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"metric {name}: its options do not fit ({error}): give those of its docstring") from error
    if is_class and not hasattr(found, "fit"):
        raise UserError(f"metric {name} is a class without fit(data): give it one, or make it a function")

    def fit(data: Clips) -> Callable[[Clips], Value]:
        return partial(found, **({"data": data} if reads_data else {}), **options)

    try:
        metric = found(**options) if is_class else found
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"metric {name}: {error}") from error
    columns = getattr(metric, "columns", ())
    if not columns or not all(isinstance(column, Column) for column in columns):
        raise UserError(f"metric {name} declares no columns: set its attribute columns to a tuple of Column")
    return _Metric(columns, getattr(metric, "least_clips", 1), metric.fit if is_class else fit)


def _checked(name: str, keys: Sequence[str], value: Any) -> dict[str, float]:
    values = value if isinstance(value, Mapping) else {keys[0]: value}
    try:
        if values.keys() == set(keys):
            return {key: float(values[key]) for key in keys}
    except (TypeError, ValueError):
        pass
    raise UserError(f"metric {name} returned {value!r:.100}, wanted a number for each of {', '.join(keys)}")
