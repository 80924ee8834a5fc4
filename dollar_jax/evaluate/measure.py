"""Metrics of a config: constructed once, fitted to real clips, and applied to the clips of models."""

import inspect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from dollar_jax.errors import UserError
from dollar_jax.importing import resolve

BETTER = ("higher", "lower", "near", "")
# Reserved keys: rows of a report, or the log, have them beside those of metrics.
TAKEN = {
    *("model", "objectives", "steps", "calls", "videos", "variant", "seeds", "std", "score"),
    *("reward", "reward_standard_error", "reward_chain", "reward_estimate", "reward_correlation"),
    *("diffusion_seconds_per_video", "diffusion_seconds_per_video_std"),
}


@dataclass(frozen=True)
class Column:
    """A value of a metric, and its presentation.

    Attributes:
      key: name in report.json, and in the log after `held_out/`.
      label: heading in tables and on the page.
      meaning: a sentence or two for readers who do not know the paper.
      better: direction: "higher", "lower", "near" (close to `ideal`), or "" for none.
      unit: "%" for a share in 0..1, "s", "dB", or another unit to print after the number.
      ideal: the best value. None: the value of real data if `better` is "near", else there is no best value.
      shown: whether tables, page and console have the column; log and report.json always have it.
    Raises:
      UserError: `key` is no identifier, or `better` has another value.
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
        """The direction in words for people, "" without one."""
        if self.better == "near":
            return "near data" if self.ideal is None else f"near {self.ideal:g}"
        return f"{self.better} is better" if self.better else ""


@dataclass(frozen=True)
class Clips:
    """The input of metrics, real videos or a model's: pixels, latents and captions."""

    pixels: UInt8[np.ndarray, "n F H W 3"]
    latents: Float[np.ndarray, "n f h w c"]
    captions: Sequence[str]
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def frames(self) -> Float32[np.ndarray, "n F H W 3"]:
        """The pixels in 0..1. It is made at each use, in four times the memory of `pixels`."""
        return self.pixels / np.float32(255)

    def once(self, function: Callable, *options: Hashable) -> Any:
        """Returns function(clips, *options), computed at the first call and cached for other metrics."""
        if (function, options) not in self._made:
            self._made[function, options] = function(self, *options)
        return self._made[function, options]


# Value of the only column, or values of all columns by key; None and nan: the clips do not determine it.
Value = float | None | Mapping[str, float | None]


class _Metric(NamedTuple):
    columns: Sequence[Column]
    least_clips: int  # smallest number of real clips
    fit: Callable[[Clips | None], Callable[[Clips], Value]]


class Metrics:
    """The metrics of a config, see `dollar_jax.evaluate.metrics`.

    Args:
      named: import path -> options.
    Attributes:
      columns: columns of all metrics, in order.
      least_clips: import path -> smallest number of real clips that the metric needs; 0: it takes no notice of them.
    Raises:
      UserError: a metric does not exist, does not take its options or declares no columns; two columns have one key.
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

    def fit(self, data: Clips | None) -> Callable[[Clips], dict[str, float]]:
        """Fits all metrics to real clips. Returns the function (clips of a model) -> {key: value} of all columns.

        A value that the clips do not determine is nan.

        Args:
          data: real clips; None if no metric needs one.
        Raises:
          UserError: when the function is called, if a metric does not return the values of its columns.
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

    def fit(data: Clips | None) -> Callable[[Clips], Value]:
        return partial(found, **({"data": data} if reads_data else {}), **options)

    try:
        metric = found(**options) if is_class else found
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"metric {name}: {error}") from error
    columns = getattr(metric, "columns", ())
    if not columns or not all(isinstance(column, Column) for column in columns):
        raise UserError(f"metric {name} declares no columns: set its attribute columns to a tuple of Column")
    needed = getattr(metric, "least_clips", int(is_class or reads_data))
    return _Metric(columns, needed, metric.fit if is_class else fit)


def _checked(name: str, keys: Sequence[str], value: Any) -> dict[str, float]:
    values = value if isinstance(value, Mapping) else {keys[0]: value}
    try:
        if values.keys() == set(keys):
            return {key: math.nan if values[key] is None else float(values[key]) for key in keys}
    except (TypeError, ValueError):
        pass
    raise UserError(f"metric {name} returned {value!r:.100}, wanted a number for each of {', '.join(keys)}")
