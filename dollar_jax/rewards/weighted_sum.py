"""A weighted sum of several rewards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32

from dollar_jax.errors import UserError
from dollar_jax.rewards.judge import DEFAULTS, Judge
from dollar_jax.types import Params, PerExample


class WeightedSum:
    """sum_i weight_i reward_i, differentiable if all of its terms are.

    Args:
      terms: label -> {name, weight, options, frames, timeout}. All fields but `weight` are as in `Judge`; `options`,
        `frames` and `timeout` default to {}, 0 and 0.
    Raises:
      UserError: a term lacks its name or weight, has an unknown field, or its reward cannot be constructed.
    """

    def __init__(self, terms: Mapping[str, Mapping[str, Any]]):
        if not terms:
            raise UserError("a weighted sum has at least one term: set options.terms")
        for label, term in terms.items():
            if unknown := term.keys() - {"name", "weight", *DEFAULTS}:
                raise UserError(f"the term {label} has no field {min(unknown)!r}")
            if missing := {"name", "weight"} - term.keys():
                raise UserError(f"the term {label} lacks its {min(missing)}")
        self._weights = {label: term["weight"] for label, term in terms.items()}
        self._judges = {
            label: Judge({field: value for field, value in term.items() if field != "weight"})
            for label, term in terms.items()
        }
        if all(judge.differentiable for judge in self._judges.values()):
            self.params = {label: judge.params for label, judge in self._judges.items()}
            self.prepare, self.score = self._prepare, self._score

    def __call__(self, frames: Float[np.ndarray, "b f h w 3"], captions: Sequence[str]) -> Float32[np.ndarray, " b"]:
        """The weighted sum [b]."""
        return self._sum({label: judge(frames, captions) for label, judge in self._judges.items()})

    def stop(self) -> None:
        """Stops the rewards of all terms."""
        for judge in self._judges.values():
            judge.stop()

    def _prepare(self, captions: Sequence[str]) -> dict[str, Any]:
        return {label: judge.prepare(captions) for label, judge in self._judges.items()}

    def _score(self, frames: Float[Array, "b f h w 3"], prepared: dict[str, Any], params: Params) -> PerExample:
        return self._sum(
            {label: judge.score(frames, prepared[label], params[label]) for label, judge in self._judges.items()}
        )

    def _sum(self, terms: Mapping[str, Any]) -> Any:
        return sum(self._weights[label] * values for label, values in terms.items())


weighted_sum = WeightedSum  # its name in a config
