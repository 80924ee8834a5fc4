"""The whole pipeline on real files: mp4 in, every stage for a few iterations, mp4 out; killed, refused, forked."""

import fcntl
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
from commands import ROOT, Command, program, run

from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.data.video import read_video, write_video

LAST = {"vae": 8, "teacher": 8, "vsd_cd": 8, "vsd_cd_lrm": 6}  # iterations of each stage
TRAINED = list(LAST)
SMALL = {
    "vae.network.block_out_channels": "(16,)",
    "teacher.network.num_layers": 1,
    "teacher.network.num_attention_heads": 2,
    "teacher.network.attention_head_dim": 16,
    "fake_score.updates": 1,
    "students.vsd_cd_lrm.generator.iterations": 6,
    "stages": "('vae','encode','teacher','distill')",
    "students.vsd_cd_lrm.generator.save_every": 2,
    "held_out.videos_per_caption": 0,
    **{
        f"{stage}.{field}": value
        for stage in ("vae", "teacher", "generator")
        for field, value in {"iterations": 8, "save_every": 2, "log_every": 2, "batch_size": 4, "show_every": 8}.items()
    },
}


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")  # the second run of a program need not compile it again
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(module, **options):
    return [module, *(f"--{name}={value}" for name, value in options.items())]


def train(workdir, dataset, **changes):
    fields = SMALL | {"data.path": dataset} | changes
    return command(
        "main",
        config=ROOT / "configs/shapes.py",
        workdir=workdir,
        **{f"config.{name}": value for name, value in fields.items()},
    )


def run_program(arguments, environment):
    return subprocess.run(program(arguments), cwd=ROOT, env=environment, text=True, capture_output=True)


def refused(result, *words):
    """One line, exit status 2, no traceback."""
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    assert all(word in line for word in words), line


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, environment):
    """64 clips of the shapes world, written as H.264 files and ingested."""
    folder = tmp_path_factory.mktemp("files")
    world, lines = ShapesWorld(64, seed=3), []
    for i in range(64):
        write_video(folder / f"{i}.mp4", world[i]["video"], fps=8)
        lines.append(json.dumps({"file": f"{i}.mp4", "caption": world[i]["caption"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    out = folder / "dataset"
    config = {"videos": folder, "captions": folder / "captions.jsonl", "out": out, "config": ROOT / "configs/shapes.py"}
    result = run_program(command("data", **config), environment)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, dataset, environment):
    """A run of all stages that nobody disturbed."""
    folder = tmp_path_factory.mktemp("run") / "W"
    result = run_program(train(folder, dataset), environment)
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


@pytest.mark.parametrize(("student", "steps"), [("vsd_cd", None), ("vsd_cd_lrm", 1), ("teacher", None)])
def test_sampling(workdir, environment, tmp_path, student, steps):
    (tmp_path / "prompts.txt").write_text("a red ring moving left\n\na blue cross standing still\n")
    options = {"checkpoint": workdir / student, "prompts": tmp_path / "prompts.txt", "out": tmp_path / "out"}
    options |= {"num_videos": 2, "save_latents": True} | ({"steps": steps} if steps else {})
    result = run(command("sample", **options), environment)
    assert result.returncode == 0, result.stderr
    names = ["00000-0", "00000-1", "00001-0", "00001-1"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.{kind}" for name in names for kind in ("mp4", "npy")
    )
    frames, fps = read_video(tmp_path / "out/00000-0.mp4")
    assert (frames.shape, fps) == ((9, 32, 32, 3), 8)
    latents = [np.load(tmp_path / f"out/{name}.npy") for name in names]
    assert {(x.dtype, x.shape) for x in latents} == {(np.dtype("float32"), (3, 8, 8, 4))}
    assert all(np.abs(latents[0] - other).max() > 1e-3 for other in latents[1:])


def test_given_noise_decides_the_video(workdir, environment, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ring moving left")
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(1, 3, 8, 8, 4)).astype(np.float32))
    options = {"checkpoint": workdir / "vsd_cd", "prompts": tmp_path / "prompts.txt", "save_latents": True}
    for seed in (0, 1):
        options |= {"out": tmp_path / str(seed), "noise": tmp_path / "noise.npy", "seed": seed}
        assert run(command("sample", **options), environment).returncode == 0
    one, other = (np.load(tmp_path / f"{seed}/00000-0.npy") for seed in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_a_run_leaves_logs_cards_and_counts(workdir):
    for stage, total in LAST.items():
        lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == total - 1
        assert "loss" in lines[-1]
        assert list((workdir / stage).glob("events.out.tfevents*"))
        assert "Total" in (workdir / stage / "parameters.txt").read_text()
    card = json.loads((workdir / "vsd_cd_lrm/config.json").read_text())
    assert (card["role"], card["times"]) == ("student", [249, 499, 749, 999])
    assert "latent_reward" in card["objectives"]


def test_a_report_on_files_that_were_encoded_before(workdir, dataset, environment, tmp_path):
    """From latents in place of videos, and of so few that spaces are smaller."""
    files = {"videos": dataset.parent, "captions": dataset.parent / "captions.jsonl", "out": tmp_path / "encoded"}
    encode = {"config": ROOT / "configs/shapes.py", "encode": True, "teacher": workdir / "teacher"}
    result = run(command("data", **files, **encode), environment)
    assert result.returncode == 0, result.stderr

    for name in ("vae", "encoded", "teacher", "vsd_cd", "vsd_cd_lrm"):
        shutil.copytree(workdir / name, tmp_path / "W" / name)
    small = {"captions": 2, "videos_per_caption": 2, "clips": 2, "batch_size": 4, "repeats": 1, "fewer_steps": "(1,)"}
    fields = {"stages": "('report',)", "teacher.path": tmp_path / "W/teacher"}
    fields |= {f"report.metrics.{metric}.components": 0 for metric in ("frechet", "detail")}
    fields |= {**{f"report.{k}": v for k, v in small.items()}}
    result = run(train(tmp_path / "W", tmp_path / "encoded", **fields), environment)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "W/report/report.json").read_text())["rows"]
    names = ["data", "teacher", "teacher, 4 steps", "vsd_cd", "vsd_cd_lrm", "vsd_cd, 1 step"]
    assert [row["model"] for row in rows] == names
    assert all(np.isfinite(row[name]) for row in rows for name in ("frechet", "hf", "vendi", "reward"))
    assert [row["videos"] for row in rows[1:]] == [4] * 5


# How a run is cut short in each stage: by which signal, and --stop_status of that run.
CUTS = {"vae": ("SIGKILL", 0), "teacher": ("SIGTERM", 0), "vsd_cd": ("SIGTERM", 75), "vsd_cd_lrm": ("SIGKILL", 0)}
FOLDERS = ["vae", "encoded", "teacher", "vsd_cd", "vsd_cd_lrm"]  # in the order in which they are made


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


def cut(folder, dataset, environment, stage):
    """The end of a run by a signal at its first checkpoint of a stage: when it begins to be saved, or, to kill, after
    that. Again, from the stage before, if the run was faster than the signal.
    """
    kind, status = CUTS[stage]
    wanted, delay = ("2", random.Random(stage).uniform(0, 0.05)) if kind == "SIGKILL" else ("*", 0)
    for _ in range(5):
        process = Command([*train(folder, dataset), f"--stop_status={status}"], environment)
        while process.poll() is None and not list((folder / stage / "checkpoints").glob(wanted)):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.Signals[kind])
        end = end_of(process, folder)
        if LAST[stage] not in end.saved[stage]:
            break
        for name in FOLDERS[FOLDERS.index(stage) :]:
            shutil.rmtree(folder / name, ignore_errors=True)
    return end


@pytest.fixture(scope="module")
def interrupted(dataset, environment, tmp_path_factory):
    """The run, by the same command again and again: cut short in every stage, then by a full disk, then to its end."""
    folder = tmp_path_factory.mktemp("interrupted") / "W"
    ends = {stage: cut(folder, dataset, environment, stage) for stage in TRAINED}
    # No file may grow beyond 20 kB: that is a disk which fills up while a checkpoint is being written. (Python would
    # leave modules half compiled, for all others.)
    limited = ["bash", "-c", f"ulimit -f 20; {shlex.join(program(train(folder, dataset)))}"]
    without = environment | {"PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(limited, cwd=ROOT, env=without, text=True, stdout=PIPE, stderr=PIPE)
    ends["full disk"] = end_of(process, folder)
    result = run(train(folder, dataset), environment)
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
    assert 0 < max(ends[stage].saved[stage]) < LAST[stage]  # from there it went on
    ends_alike(workdir, folder, [stage])


@pytest.mark.parametrize("stage", [stage for stage, (kind, _) in CUTS.items() if kind == "SIGTERM"])
def test_a_run_asked_to_stop_saves(stage, interrupted):
    end = interrupted[1][stage]
    assert end.status == CUTS[stage][1], end
    assert end.seconds < 60  # 10 where nothing else runs
    assert re.search(r"saved at step \d+ and stopped; the same command goes on", end.output), end
    assert not end.half


@pytest.mark.slow  # ten minutes
def test_a_run_killed_twenty_times_ends_as_one_left_alone(workdir, dataset, environment, tmp_path):
    """Shortly after a checkpoint began: half of them while it is written."""
    folder, kills = tmp_path / "W", 0
    often = train(folder, dataset, **{f"{stage}.save_every": 1 for stage in ("vae", "teacher", "generator")})
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
    [((1, 2), (2, 1), 9), pytest.param((1, 8), (2, 2), 26, marks=pytest.mark.slow)],  # eight minutes
)
def test_a_run_goes_on_on_another_mesh(first, then, last, workdir, dataset, environment, tmp_path):
    """From the checkpoint at 6 to the last iteration."""
    fields = {"stages": "('distill',)", "teacher.path": workdir / "teacher"}
    fields |= {"generator.iterations": last, "generator.keep": 9, "generator.batch_size": 8}
    fields |= {"generator.save_every": 6, "generator.log_every": 1, "generator.show_every": 0}
    for name in ("encoded", "vsd_cd_lrm"):  # the other student is finished
        shutil.copytree(workdir / name, tmp_path / "one" / name)

    def losses(folder, mesh):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={mesh[0] * mesh[1]}"
        changes = fields | {"mesh.data": mesh[0], "mesh.fsdp": mesh[1]}
        result = run(train(folder, dataset, **changes), environment | {"XLA_FLAGS": flags})
        assert result.returncode == 0, result.stderr
        lines = [json.loads(line) for line in (folder / "vsd_cd/metrics.jsonl").read_text().splitlines()]
        return np.array([[value for name, value in line.items() if "loss" in name] for line in lines])

    wanted = losses(tmp_path / "one", first)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    for path in (tmp_path / "other/vsd_cd/checkpoints").iterdir():
        if path.name != "6":
            shutil.rmtree(path)
    got = losses(tmp_path / "other", then)
    assert len(got) == last
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_second_run_in_a_workdir_is_refused(workdir, dataset, environment):
    with (workdir / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(run(train(workdir, dataset), environment), "is in use", "--workdir")


def test_another_config_is_refused_and_the_same_one_does_nothing(workdir, dataset, environment):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/*/state/manifest.ocdbt")}
    refused(run(train(workdir, dataset, **{"seed": 1}), environment), "seed is 0 there, 1 here", "--workdir")
    assert run(train(workdir, dataset), environment).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/*/state/manifest.ocdbt")}


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(interrupted):
    """The run goes on from there: its last stage ends as one left alone."""
    _, ends = interrupted
    end = ends["full disk"]
    assert end.status == 2
    assert "disk is full" in end.errors.splitlines()[-1]
    assert "Traceback" not in end.errors
    assert len(end.errors.splitlines()) < 5, end.errors
    assert end.saved == ends["vsd_cd_lrm"].saved
    assert not end.half


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": "configs/nothing.py"}, ["configs/nothing.py"]),
        ({"config.generator.objectives.consitency": 0.3}, ["consitency"]),
        ({"config.generator.iterations": "many"}, ["iterations"]),
        ({"wrokdir": "W"}, ["wrokdir"]),
        ({"workdir": ""}, ["--workdir"]),
        ({"config.stages": "('vea',)"}, ["vea"]),
        ({"config.mesh.data": 7}, ["mesh", "1 devices"]),
        ({"config.vae.accumulate": 3}, ["batch_size 4", "accumulate = 3", "multiple of 3"]),
        ({"processes": 2}, ["--coordinator", "--process"]),
        ({"config.video.frames": 10}, ["10 frames", "4 k + 1"]),
        ({"config.video.height": 30}, ["30"]),
        ({"config.data.path": "nowhere"}, ["nowhere"]),
    ],
)
def test_bad_commands_are_refused(changes, words, environment, tmp_path):
    options = {"config": "configs/shapes.py", "workdir": tmp_path / "W"} | changes
    refused(run(command("main", **options), environment), *words)
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": "nowhere"}, ["nowhere", "no checkpoint"]),
        ({"prompts": "missing.txt"}, ["missing.txt"]),
        ({"prompts": os.devnull}, ["no prompt"]),
        ({"steps": 3}, ["3"]),
        ({"steps": 5}, ["5", "249"]),
        ({"noise": "pyproject.toml"}, ["pyproject.toml"]),
        ({"out": ""}, ["--out"]),
    ],
)
def test_bad_samples_are_refused(workdir, changes, words, environment, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ring moving left")
    options = {"checkpoint": workdir / "vsd_cd", "prompts": tmp_path / "prompts.txt", "out": tmp_path / "out"}
    refused(run(command("sample", **options | changes), environment), *words)
    assert not (tmp_path / "out").exists()
