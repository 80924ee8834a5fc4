"""A run that is killed, asked to stop, or out of disk goes on to the same end; also on another mesh.

The networks are toys: what is saved and restored does not depend on them.
"""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from subprocess import PIPE
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import ROOT, Command, command, program, run

HELPERS = ROOT / "tests/helpers"
TRAINED = ["vae", "teacher", "student", "tuned"]
LAST = 6  # iterations of each stage


@pytest.fixture(scope="module")
def environment():
    paths = os.pathsep.join([str(ROOT), str(HELPERS)])
    return os.environ | {"PYTHONPATH": paths}


def train(workdir, **changes):
    options = {"config": HELPERS / "toy_run.py", "workdir": workdir}
    return command("main", **options, **{f"config.{name}": value for name, value in changes.items()})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, environment):
    """A run of all stages that nobody disturbed."""
    folder = tmp_path_factory.mktemp("run") / "W"
    result = run(train(folder), environment)
    assert result.returncode == 0, result.stderr
    return folder


def final_state(workdir, name):
    steps = [int(path.name) for path in (workdir / name / "checkpoints").iterdir()]
    folder = workdir / name / "checkpoints" / str(max(steps))
    items = sorted(path.parent.name for path in folder.glob("*/manifest.ocdbt"))
    with ocp.StandardCheckpointer() as reader:
        state = {item: reader.restore(folder / item) for item in items}
    assert "ema" in state
    return jax.tree.map(np.asarray, state)


# How a run is cut short in each stage: by which signal, and --stop_status of that run.
CUTS = {"vae": ("SIGKILL", 0), "teacher": ("SIGTERM", 0), "student": ("SIGTERM", 75), "tuned": ("SIGKILL", 0)}
FOLDERS = ["vae", "encoded", "teacher", "student", "tuned"]  # in the order in which they are made


class End(NamedTuple):
    status: int
    output: str
    errors: str
    seconds: float  # from the signal on
    saved: dict[str, list[int]]  # stage -> steps of its checkpoints
    half: list[Path]  # checkpoints under their final names that are not complete


def end_of(process, folder):
    asked = time.monotonic()
    output, errors = process.communicate()
    found = [path for path in folder.glob("*/checkpoints/*") if path.name.isdigit()]
    saved = {stage: sorted(int(path.name) for path in found if path.parts[-3] == stage) for stage in TRAINED}
    half = [path for path in found if not (path / "_CHECKPOINT_METADATA").exists()]
    return End(process.returncode, output, errors, time.monotonic() - asked, saved, half)


def cut(folder, environment, stage):
    """The end of a run by a signal at its first checkpoint of a stage: when it begins to be saved, or, to kill, after
    that. Again, from the stage before, if the run was faster than the signal.
    """
    kind, status = CUTS[stage]
    wanted, delay = ("2", random.Random(stage).uniform(0, 0.05)) if kind == "SIGKILL" else ("*", 0)
    for _ in range(5):
        process = Command([*train(folder), f"--stop_status={status}"], environment)
        while process.poll() is None and not list((folder / stage / "checkpoints").glob(wanted)):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.Signals[kind])
        end = end_of(process, folder)
        if LAST not in end.saved[stage]:
            break
        for name in FOLDERS[FOLDERS.index(stage) :]:
            shutil.rmtree(folder / name, ignore_errors=True)
    return end


@pytest.fixture(scope="module")
def interrupted(environment, tmp_path_factory):
    """The run, by the same command again and again: cut short in every stage, then by a full disk, then to its end."""
    folder = tmp_path_factory.mktemp("interrupted") / "W"
    ends = {stage: cut(folder, environment, stage) for stage in TRAINED}
    # No file may grow beyond 20 kB: that is a disk which fills up while a checkpoint is being written. (Python would
    # leave modules half compiled, for all others.)
    limited = ["bash", "-c", f"ulimit -f 20; {shlex.join(program(train(folder)))}"]
    without = environment | {"PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(limited, cwd=ROOT, env=without, text=True, stdout=PIPE, stderr=PIPE)
    ends["full disk"] = end_of(process, folder)
    result = run(train(folder), environment)
    assert result.returncode == 0, result.stderr
    return folder, ends


def ends_alike(workdir, other, stages=TRAINED):
    """The final states are equal to the bit, and so are the steps in the logs."""
    for name in stages:
        np.testing.assert_equal(final_state(other, name), final_state(workdir, name))
        steps = [
            [json.loads(line)["step"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
            for folder in (workdir, other)
        ]
        assert steps[0] == steps[1]


@pytest.mark.parametrize("stage", TRAINED)
def test_a_stage_that_was_cut_short_ends_as_one_left_alone(stage, workdir, interrupted):
    folder, ends = interrupted
    assert 0 < max(ends[stage].saved[stage]) < LAST  # from there it went on
    ends_alike(workdir, folder, [stage])


@pytest.mark.parametrize("stage", [stage for stage, (kind, _) in CUTS.items() if kind == "SIGTERM"])
def test_a_run_asked_to_stop_saves(stage, interrupted):
    end = interrupted[1][stage]
    assert end.status == CUTS[stage][1], end
    assert end.seconds < 60  # 10 where nothing else runs
    assert re.search(r"saved at step \d+ and stopped; the same command goes on", end.output), end
    assert not end.half


@pytest.mark.slow  # ten minutes
def test_a_run_killed_twenty_times_ends_as_one_left_alone(workdir, environment, tmp_path):
    """Shortly after a checkpoint began: half of them while it is written."""
    folder, kills = tmp_path / "W", 0
    often = train(folder, **{f"{stage}.save_every": 1 for stage in ("vae", "teacher", "generator")})
    while kills < 20:
        before = set(folder.glob("*/checkpoints/*"))
        process = Command(often, environment)
        while process.poll() is None and not set(folder.glob("*/checkpoints/*")) - before:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
            print(kills, sorted(str(path.relative_to(folder)) for path in set(folder.glob("*/checkpoints/*")) - before))
        else:  # it came to its end: the last stage once more
            shutil.rmtree(folder / TRAINED[-1])
        process.communicate()
    result = run(often, environment)
    assert result.returncode == 0, result.stderr
    ends_alike(workdir, folder)


@pytest.mark.parametrize(
    ("first", "then", "last"),
    [((1, 2), (2, 1), 9), pytest.param((1, 8), (2, 2), 26, marks=pytest.mark.slow)],
)
def test_a_run_goes_on_on_another_mesh(first, then, last, workdir, environment, tmp_path):
    """From the checkpoint at 6 to the last iteration."""
    fields = {"stages": "('distill',)", "teacher.path": workdir / "teacher"}
    fields |= {"generator.iterations": last, "generator.keep": 9, "generator.batch_size": 8}
    fields |= {"generator.save_every": 6, "generator.objectives.toy_family:adversarial": 0}
    for name in ("encoded", "tuned"):  # the other student is finished
        shutil.copytree(workdir / name, tmp_path / "one" / name)

    def losses(folder, mesh):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={mesh[0] * mesh[1]}"
        changes = fields | {"mesh.data": mesh[0], "mesh.fsdp": mesh[1]}
        result = run(train(folder, **changes), environment | {"XLA_FLAGS": flags})
        assert result.returncode == 0, result.stderr
        lines = [json.loads(line) for line in (folder / "student/metrics.jsonl").read_text().splitlines()]
        return np.array([[value for name, value in line.items() if "loss" in name] for line in lines])

    wanted = losses(tmp_path / "one", first)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    for path in (tmp_path / "other/student/checkpoints").iterdir():
        if path.name != "6":
            shutil.rmtree(path)
    got = losses(tmp_path / "other", then)
    assert len(got) == last
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(interrupted):
    """The run goes on from there: its last stage ends as one left alone."""
    _, ends = interrupted
    end = ends["full disk"]
    assert end.status == 2
    assert "disk is full" in end.errors.splitlines()[-1]
    assert "Traceback" not in end.errors
    assert len(end.errors.splitlines()) < 5, end.errors
    assert end.saved == ends["tuned"].saved
    assert not end.half
