"""Winning rates (Fig. 6) from the answers of raters, as a table and as a page with a bar chart."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dollar_jax.evaluate.human_study import QUESTIONS
from dollar_jax.evaluate.pages import render
from dollar_jax.files import write_atomically

Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations


class Rate(NamedTuple):
    """Numbers of answers that prefer one model, the other, or neither."""

    wins: int
    losses: int
    ties: int

    @property
    def rate(self) -> float:
        """Share of wins among the answers that are not ties; nan if all are ties."""
        decided = self.wins + self.losses
        return self.wins / decided if decided else math.nan


class Comparison(NamedTuple):
    """The answers about two models. Rates are winning rates of the first model."""

    models: tuple[str, str]
    raters: int
    answers: int
    rates: Mapping[str, Rate]  # key of QUESTIONS -> rate


def compare(answers: Iterable[Mapping]) -> list[Comparison]:
    """Comparisons from the lines that `human_study.record` wrote, in the order of first appearance.

    If a rater answered a pair several times, the last answer counts.
    """
    groups: dict[frozenset, dict[tuple[str, str], Mapping]] = {}
    for answer in answers:
        group = groups.setdefault(frozenset(answer["models"]), {})
        group[answer["rater"], answer["pair"]] = answer
    return [_compare(list(group.values())) for group in groups.values()]


def interval(rate: Rate) -> tuple[float, float]:
    """Wilson's 95 % interval of a winning rate; (0, 1) if all answers are ties.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), for n answers that are not ties. The formula takes
    answers as independent: with raters who see the same pairs, the interval is a little too narrow.
    """
    count = rate.wins + rate.losses
    if not count:
        return 0.0, 1.0
    middle = rate.rate + Z**2 / (2 * count)
    half = Z * math.sqrt(rate.rate * (1 - rate.rate) / count + Z**2 / (4 * count**2))
    return tuple(max(0.0, min(1.0, (middle + side * half) / (1 + Z**2 / count))) for side in (-1, 1))


def table(comparisons: Sequence[Comparison]) -> str:
    """A table of the rates as text for a terminal."""
    lines = []
    for comparison in comparisons:
        first, second = comparison.models
        lines += ["", f"{first} against {second}: {_sizes(comparison)}", ""]
        lines.append(f"{'':22}{'wins':>6}{'losses':>8}{'equal':>7}   winning rate, 95 % interval")
        for question in QUESTIONS:
            rate = comparison.rates[question.key]
            lines.append(f"{question.name:22}{rate.wins:6}{rate.losses:8}{rate.ties:7}   {_words(rate)}")
    return "\n".join(lines[1:])


def write_page(path: str | os.PathLike, comparisons: Sequence[Comparison]) -> None:
    """Writes a self-contained HTML page with a bar and the numbers for each question."""
    questions = [question._asdict() for question in QUESTIONS]
    values = [
        {
            "models": comparison.models,
            "sizes": _sizes(comparison),
            "rows": [
                question
                | comparison.rates[question["key"]]._asdict()
                | {
                    "rate": comparison.rates[question["key"]].rate,
                    "interval": interval(comparison.rates[question["key"]]),
                    "words": _words(comparison.rates[question["key"]]),
                }
                for question in questions
            ],
        }
        for comparison in comparisons
    ]
    write_atomically(path, render("human_rates.html.jinja", comparisons=values))


def _compare(answers: Sequence[Mapping]) -> Comparison:
    first, second = answers[0]["models"]

    def count(key: str, winner: str | None) -> int:
        return sum((None if answer[key] == "equal" else answer[answer[key]]) == winner for answer in answers)

    return Comparison(
        (first, second),
        len({answer["rater"] for answer in answers}),
        len(answers),
        {key: Rate(*(count(key, winner) for winner in (first, second, None))) for key, _, _ in QUESTIONS},
    )


def _sizes(comparison: Comparison) -> str:
    raters, answers = comparison.raters, comparison.answers
    return f"{answers} pair{'s' * (answers > 1)} judged by {raters} rater{'s' * (raters > 1)}"


def _words(rate: Rate) -> str:
    if math.isnan(rate.rate):
        return "nothing decided"
    low, high = interval(rate)
    return f"{100 * rate.rate:.1f} %, {100 * low:.1f} to {100 * high:.1f}"
