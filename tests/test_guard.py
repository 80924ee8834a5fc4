import math

import pytest

from dollar_jax import config, guard
from dollar_jax.errors import UserError


def history(*pairs):
    return [
        {"step": 10 * index - 1, "held_out/reward": reward, "held_out/frechet": frechet}
        for index, (reward, frechet) in enumerate(pairs)
    ]


RULE = config.guard("-frechet", tolerance=5.0, patience=2)


def test_nothing_measured():
    assert guard.assess([], RULE) == (None, False)


def test_the_best_is_the_largest_reward_within_bounds():
    assert guard.assess(history((1.0, 100.0), (2.0, 104.9), (3.0, 105.1)), RULE) == (10, False)
    assert guard.assess(history((1.0, 100.0), (2.0, 50.0), (1.5, 100.0)), RULE) == (10, False)


def test_a_run_out_of_bounds_ends_after_patience():
    pairs = [(1.0, 100.0), (2.0, 101.0), (3.0, 120.0), (4.0, 140.0)]
    assert guard.assess(history(*pairs[:3]), RULE) == (10, False)
    assert guard.assess(history(*pairs), RULE) == (10, True)


def test_a_run_that_only_worsens_keeps_its_start():
    assert guard.assess(history((1.0, 100.0), (0.9, 100.0), (0.8, 100.0)), RULE) == (0, True)


def test_a_run_that_comes_back_goes_on():
    assert guard.assess(history((1.0, 100.0), (2.0, 110.0), (3.0, 104.0)), RULE) == (20, False)


@pytest.mark.parametrize(("metric", "value", "inside"), [("-x", 10.6, False), ("-x", 10.4, True), ("-x", 2.0, True)])
def test_smaller_is_better_with_a_minus(metric, value, inside):
    assert guard.within([10.0, value], metric, 0.5) == inside
    assert guard.within([-10.0, -value], metric.removeprefix("-"), 0.5) == inside


def test_a_start_without_fault_leaves_as_much_room_as_any():
    """A share of the start would leave none."""
    assert guard.within([0.0, 3.0], "-frechet", 4.0)
    assert not guard.within([0.0, 5.0], "-frechet", 4.0)


def test_a_run_is_compared_with_its_best():
    """A student that is distilled and tuned at once starts far from data: that is no measure for what it may become."""
    pairs = [(1.0, 300.0), (0.9, 100.0), (2.0, 104.0), (3.0, 120.0)]
    assert guard.assess(history(*pairs), RULE) == (20, False)


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_metric_without_a_value_at_the_start_is_refused(value):
    """Vendi with one video a caption never has one: all checkpoints would be out of bounds, after the whole run."""
    with pytest.raises(UserError, match=r"guard\.metric=-frechet has no value before the first update"):
        guard.assess(history((1.0, value)), RULE)


def test_what_is_not_finite_is_out_of_bounds():
    lines = history((1.0, 100.0), (2.0, None))
    assert guard.score(lines, RULE) == -math.inf
    lines = history((1.0, 100.0), (2.0, math.nan))
    assert guard.score(lines, RULE) == -math.inf


def test_of_equal_checkpoints_the_last_is_the_best_as_it_is_the_one_kept():
    """A reward that stands still is no progress all the same."""
    assert guard.assess(history((1.0, 100.0), (2.0, 100.0), (2.0, 100.0)), RULE) == (20, False)
    assert guard.assess(history((2.0, 100.0), *[(2.0, 100.0)] * RULE.patience), RULE).stop
