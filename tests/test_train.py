import os
import shutil
import signal
from types import SimpleNamespace

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dollar_jax.config import stage
from dollar_jax.errors import UserError
from dollar_jax.metrics import read
from dollar_jax.sharding import make_mesh
from dollar_jax.train import SKIPS, Preempted, Skips, train


@flax.struct.dataclass
class State:
    step: jax.Array
    ema: dict


def loop(folder, iterations=3, show=None, measure=None, metric="", log_every=1, update=None):
    """Runs a stage that counts, or makes this update, and says at which updates it was."""
    source = [{"x": np.float32(i), "caption": "a cat"} for i in range(8)]
    batches = iter(grain.MapDataset.source(source).repeat().batch(2).to_iter_dataset())
    guard = ConfigDict({"metric": metric, "tolerance": 0.05, "patience": 2})
    config = stage(iterations, 2, guard=guard, save_every=2, log_every=log_every, show_every=1)
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": 1, "context": 1}), jax.devices()[:1])
    done = []

    def count(state, batch, captions, number):
        done.append(number)
        return state.replace(step=state.step + 1, ema={"w": state.ema["w"] + 1}), {"loss": 1.0}

    with jax.set_mesh(mesh):
        state = jax.tree.map(jax.device_put, State(jnp.zeros((), jnp.int32), {"w": jnp.zeros(2)}))
        train(folder, state, update or count, batches, config, mesh, show, measure)
    return done


def test_a_signal_at_the_last_update_is_not_lost(tmp_path):
    """It came when the loop had looked for the last time: everything is saved, and the next stage does not begin."""

    def show(state):
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return np.zeros((1, 2, 4, 4, 3), np.uint8), ["a cat"]

    with pytest.raises(Preempted, match="finished and stopped"):
        loop(tmp_path, show=show)
    assert loop(tmp_path, show=show) == []


def test_what_was_stopped_at_its_last_update_is_measured_later(tmp_path):
    """Or a guard could not choose it."""
    asked = iter([True])

    def measure(state):
        return {"held_out/reward": float(state.step), "held_out/alignment": 1.0}

    def show(state):
        if state.step == 2 and next(asked, False):  # before the last update looks
            os.kill(os.getpid(), signal.SIGTERM)
        return np.zeros((1, 2, 4, 4, 3), np.uint8), ["a cat"]

    with pytest.raises(Preempted, match="saved at step 3"):
        loop(tmp_path, show=show, measure=measure, metric="alignment")
    steps = [line["step"] for line in read(tmp_path) if "held_out/reward" in line]
    assert steps == [-1, 1]
    assert loop(tmp_path, show=show, measure=measure, metric="alignment") == []
    steps = [line["step"] for line in read(tmp_path) if "held_out/reward" in line]
    assert steps == [-1, 1, 2]


@pytest.mark.parametrize(("iterations", "metric", "checkpoints"), [(3, "", 2), (20, "", 3), (20, "alignment", 4)])
def test_a_disk_too_small_is_refused_before_the_first_update(iterations, metric, checkpoints, tmp_path, monkeypatch):
    """Two are kept, one is being written, and of a guard there is the best; a short run has fewer."""
    size = 12  # bytes: two weights and the step

    def measure(state):
        return {"held_out/reward": float(state.step), "held_out/alignment": 1.0}

    def run():
        return loop(tmp_path, iterations, measure=measure if metric else None, metric=metric)

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=checkpoints * size - 1))
    with pytest.raises(UserError, match=f"the disk is full: .* MB for {checkpoints} checkpoints at a time"):
        run()
    assert not list((tmp_path / "checkpoints").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=checkpoints * size))
    assert len(run()) == iterations
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert run() == []  # nothing is left to save


def test_one_update_at_most_is_in_flight(tmp_path):
    """Or a signal would wait for all that are queued."""
    matrix, losses, waiting = jnp.eye(500), [], []

    @jax.jit
    def slow(x):
        return jax.lax.fori_loop(0, 30, lambda _, x: x @ matrix, x).sum()

    def update(state, batch, captions, number):
        waiting.append(sum(not loss.is_ready() for loss in losses))
        losses.append(slow(matrix))
        return state, {"loss": losses[-1]}

    loop(tmp_path, iterations=6, log_every=6, update=update)
    assert max(waiting) <= 1


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
