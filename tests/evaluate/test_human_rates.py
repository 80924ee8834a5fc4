import math

import pytest
from page import Page

from dollar_jax.evaluate.human_rates import Rate, compare, interval, table, write_page
from dollar_jax.evaluate.human_study import QUESTIONS


def answer(rater, pair, left, right, quality, models=("student", "teacher"), **choices):
    equal = {question.key: "equal" for question in QUESTIONS}
    names = {"rater": rater, "pair": pair, "models": list(models), "left": left, "right": right}
    return names | equal | {"visual_quality": quality} | choices


# ann: the student wins on the left, wins on the right twice, loses on the right; bob: a tie.
ANSWERS = [
    answer("ann", "0", "student", "teacher", "left", motion="right"),
    answer("ann", "1", "teacher", "student", "right"),
    answer("ann", "2", "teacher", "student", "right"),
    answer("ann", "3", "teacher", "student", "left"),
    answer("bob", "0", "student", "teacher", "equal"),
]


def test_winning_rates_by_hand():
    (comparison,) = compare(ANSWERS)
    assert comparison.models == ("student", "teacher")
    assert (comparison.raters, comparison.answers) == (2, 5)
    assert comparison.rates["visual_quality"] == Rate(wins=3, losses=1, ties=1)
    assert comparison.rates["visual_quality"].rate == pytest.approx(3 / 4)
    assert comparison.rates["motion"] == Rate(0, 1, 4)
    assert comparison.rates["preference"] == Rate(0, 0, 5)
    assert math.isnan(comparison.rates["preference"].rate)


def test_the_last_answer_to_a_pair_counts():
    (comparison,) = compare([*ANSWERS, answer("ann", "3", "teacher", "student", "right")])
    assert comparison.rates["visual_quality"] == Rate(4, 0, 1)


def test_comparisons_in_one_file_stay_apart():
    other = answer("ann", "0", "student", "baseline", "right", models=("student", "baseline"))
    swapped = answer("eve", "0", "student", "teacher", "left", models=("teacher", "student"))
    first, second = compare([*ANSWERS, other, swapped])
    assert first.rates["visual_quality"] == Rate(4, 1, 1)
    assert second.models == ("student", "baseline")
    assert second.rates["visual_quality"] == Rate(0, 1, 0)


@pytest.mark.parametrize(
    ("wins", "losses", "low", "high"),
    [
        # n = 10, p = .8, z^2 = 3.841459: (.8 + .192073 -+ 1.959964 sqrt(.016 + .009604)) / 1.384146
        (8, 2, 0.490162, 0.943318),
        # p = 1: (1 + z^2/2n -+ z^2/2n) / (1 + z^2/n): 1 and 1 / (1 + 3.841459 / 5)
        (5, 0, 0.565518, 1.0),
        (0, 5, 0.0, 1 - 0.565518),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_by_hand(wins, losses, low, high):
    assert interval(Rate(wins, losses, ties=3)) == pytest.approx((low, high), abs=1e-5)


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    theirs = binomtest(37, 90).proportion_ci(method="wilson")
    assert interval(Rate(37, 53, 0)) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_table():
    text = table(compare(ANSWERS))
    assert text.splitlines()[0] == "student against teacher: 5 pairs judged by 2 raters"
    words = {line[:22].strip(): line[22:].split() for line in text.splitlines()[3:]}
    assert words["Visual quality"] == ["3", "1", "1", "75.0", "%,", "30.1", "to", "95.4"]
    assert words["General preference"] == ["0", "0", "5", "nothing", "decided"]


def test_page_has_a_bar_as_long_as_the_rate(tmp_path):
    path = tmp_path / "rates.html"
    write_page(path, compare([*ANSWERS, answer("x", "0", "<b>", "teacher", "left", models=("<b>", "teacher"))]))
    text = path.read_text()
    bars = [a["width"] for tag, a in Page(text).tags if tag == "rect" and a["class"] == "first"]
    assert bars == ["75.0%", "0.0%", "100.0%"]  # quality, motion; questions that nobody decided have none
    assert "&lt;b&gt; against teacher" in text
    assert "<b>student</b>" in text
    assert "http" not in text
