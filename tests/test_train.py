import jax.numpy as jnp
import pytest

from dollar_jax.importing import UserError
from dollar_jax.train import SKIPS, Skips


def take(skips, start, values):
    for step, value in enumerate(values, start):
        skips.add(step, {"loss": jnp.nan, "skipped/student": jnp.array(value), "skipped/fake_score": jnp.array(0.0)})
    skips.check()


def test_skips_in_a_row_end_a_run():
    skips = Skips("stage")
    take(skips, 0, [1.0] * (SKIPS - 1))
    take(skips, SKIPS - 1, [0.0] + [1.0] * (SKIPS - 1))
    with pytest.raises(UserError, match=rf"stage: {SKIPS} updates of student in a row, up to step {2 * SKIPS},"):
        take(skips, 2 * SKIPS - 1, [1.0])


def test_the_first_of_each_row_is_said(capsys):
    skips = Skips("stage")
    take(skips, 0, [0.0, 1.0, 1.0, 0.0, 1.0])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"stage: update {step} of student is not finite: skipped" for step in (2, 5)]
