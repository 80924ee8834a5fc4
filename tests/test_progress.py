"""What is told about a long task."""

import sys

import pytest

from dollar_jax import progress
from dollar_jax.progress import Progress, counted


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock is ten seconds later than the one before."""
    times = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))


@pytest.mark.usefixtures("clock")
def test_a_log_gets_a_line_every_half_minute(capsys):
    assert list(counted("abcdefg", "encode", "video", 1200)) == list("abcdefg")
    assert capsys.readouterr().err.splitlines() == [
        "encode: 3 of 1,200 videos, 200 min left",
        "encode: 6 of 1,200 videos, 199 min left",
    ]


def test_a_short_task_is_quiet(capsys):
    assert list(counted([1, 2, 3], "encode", "video", 3)) == [1, 2, 3]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("clock")
def test_items_of_several_iterables_are_counted_together(capsys):
    """The time that is left does not depend on those that were done before."""
    both = Progress("encode", "video", 1200, done=1000)
    assert [*both.over("ab"), *both.over("cd")] == list("abcd")
    assert capsys.readouterr().err == "encode: 1,003 of 1,200 videos, 33 min left\n"


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(counted([1, 2, 3], "encode", "video", 3)) == [1, 2, 3]
    assert "encode: 100%" in capsys.readouterr().err
