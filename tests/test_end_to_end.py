"""The whole pipeline on real files: mp4 in, every stage for a few iterations, mp4 out; and what it refuses."""

import fcntl
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from commands import ROOT, command, program, refused, run

from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.data.video import read_video, write_video

CONFIG = ROOT / "tests/helpers/one_student.py:shapes.vsd_cd_lrm"
LAST = 4  # iterations of each stage
LOOP = {"iterations": LAST, "save_every": 2, "log_every": 2}
SMALL = {
    "vae.network.block_out_channels": "(16,)",
    "teacher.network.num_layers": 1,
    "teacher.network.num_attention_heads": 2,
    "teacher.network.attention_head_dim": 16,
    "fake_score.updates": 1,
    "generator.objectives.consistency": 0.0,
    **{f"students.vsd_cd_lrm.generator.{field}": LOOP[field] for field in ("iterations", "save_every")},
    "stages": "('vae','encode','teacher','distill')",
    "held_out.videos_per_caption": 0,
    "data.held_out": 0.25,
    **{
        f"{stage}.{field}": value
        for stage in ("vae", "teacher", "generator")
        for field, value in (LOOP | {"batch_size": 4, "show_every": LAST}).items()
    },
}


def train(workdir, dataset, **changes):
    fields = SMALL | {"data.path": dataset} | changes
    return command(
        "main",
        config=CONFIG,
        workdir=workdir,
        **{f"config.{name}": value for name, value in fields.items()},
    )


def run_program(arguments):
    return subprocess.run(program(arguments), cwd=ROOT, text=True, capture_output=True)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """64 clips of the shapes world, written as H.264 files and ingested."""
    folder = tmp_path_factory.mktemp("files")
    world, lines = ShapesWorld(64, seed=3), []
    for i in range(64):
        write_video(folder / f"{i}.mp4", world[i]["video"], fps=8)
        lines.append(json.dumps({"file": f"{i}.mp4", "caption": world[i]["caption"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    out = folder / "dataset"
    config = {"videos": folder, "captions": folder / "captions.jsonl", "out": out, "config": ROOT / "configs/shapes.py"}
    result = run_program(command("data", **config))
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, dataset):
    """A run of all stages that nobody disturbed."""
    folder = tmp_path_factory.mktemp("run") / "W"
    result = run_program(train(folder, dataset))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize(("student", "steps"), [("vsd_cd_lrm", None), ("vsd_cd_lrm", 1), ("teacher", None)])
def test_sampling(workdir, tmp_path, student, steps):
    (tmp_path / "prompts.txt").write_text("a red ring moving left\n\na blue cross standing still\n")
    options = {"checkpoint": workdir / student, "prompts": tmp_path / "prompts.txt", "out": tmp_path / "out"}
    options |= {"num_videos": 2, "save_latents": True} | ({"steps": steps} if steps else {})
    result = run(command("sample", **options))
    assert result.returncode == 0, result.stderr
    names = ["00000-0", "00000-1", "00001-0", "00001-1"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "sample.json",
        *(f"{name}.{kind}" for name in names for kind in ("mp4", "npy")),
    }
    frames, fps = read_video(tmp_path / "out/00000-0.mp4")
    assert (frames.shape, fps) == ((9, 32, 32, 3), 8)
    latents = [np.load(tmp_path / f"out/{name}.npy") for name in names]
    assert {(x.dtype, x.shape) for x in latents} == {(np.dtype("float32"), (3, 8, 8, 4))}
    assert all(np.abs(latents[0] - other).max() > 1e-3 for other in latents[1:])


def test_sampling_goes_on_where_it_was_stopped(workdir, tmp_path):
    """What is missing becomes what it was, bit for bit; two devices make the same by other roundings."""
    (tmp_path / "prompts.txt").write_text("a red ring\na blue cross\na green square\n")
    options = {"checkpoint": workdir / "vsd_cd_lrm", "prompts": tmp_path / "prompts.txt", "out": tmp_path / "out"}
    options |= {"num_videos": 2, "save_latents": True, "batch_size": 4}

    def sample(environment=os.environ, **changes):
        result = run(command("sample", **options | changes), environment)
        assert result.returncode == 0, result.stderr
        return result.stdout, {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    said, whole = sample()
    assert "6 videos" in said
    assert "on 1 device\n" in said
    for name in ("00001-1.mp4", "00002-0.npy", "00002-1.mp4", "00002-1.npy"):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out/.00001-1.mp4.123").write_bytes(b"half a video")
    kept = (tmp_path / "out/00000-0.mp4").stat().st_mtime_ns
    said, again = sample()
    assert "3 of them new" in said
    assert again == whole
    assert (tmp_path / "out/00000-0.mp4").stat().st_mtime_ns == kept

    refused(run(command("sample", **options, seed=1)), "another command", "seed is 0 there, 1 here", "--out")
    (tmp_path / "prompts.txt").write_text("a red ring\na blue cross\na green ring\n")
    refused(run(command("sample", **options)), "another command", "prompts", "--out")
    (tmp_path / "prompts.txt").write_text("a red ring\na blue cross\na green square\n")
    (tmp_path / "out/sample.json").unlink()
    refused(run(command("sample", **options)), "no sample.json", "--out")

    two = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    options["out"] = tmp_path / "two"
    said, _ = sample(two, batch_size=3)
    assert "on 2 devices" in said
    for name in whole:
        if name.endswith(".npy"):
            one, other = (np.load(tmp_path / folder / name) for folder in ("out", "two"))
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_given_noise_decides_the_video(workdir, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ring moving left")
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(1, 3, 8, 8, 4)).astype(np.float32))
    options = {"checkpoint": workdir / "vsd_cd_lrm", "prompts": tmp_path / "prompts.txt", "save_latents": True}
    for seed in (0, 1):
        options |= {"out": tmp_path / str(seed), "noise": tmp_path / "noise.npy", "seed": seed}
        assert run(command("sample", **options)).returncode == 0
    one, other = (np.load(tmp_path / f"{seed}/00000-0.npy") for seed in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_a_run_leaves_logs_cards_and_counts(workdir):
    for stage in ("vae", "teacher", "vsd_cd_lrm"):
        lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == LAST - 1
        assert "loss" in lines[-1]
        assert list((workdir / stage).glob("events.out.tfevents*"))
        assert "Total" in (workdir / stage / "parameters.txt").read_text()
    card = json.loads((workdir / "vsd_cd_lrm/config.json").read_text())
    assert (card["role"], card["times"]) == ("student", [249, 499, 749, 999])
    assert "latent_reward" in card["objectives"]


def test_a_report_on_files_that_were_encoded_before(workdir, dataset, tmp_path):
    """From latents in place of videos, and of so few that spaces are smaller."""
    files = {"videos": dataset.parent, "captions": dataset.parent / "captions.jsonl", "out": tmp_path / "encoded"}
    encode = {"config": ROOT / "configs/shapes.py", "encode": True, "teacher": workdir / "teacher"}
    result = run(command("data", **files, **encode))
    assert result.returncode == 0, result.stderr

    for name in ("vae", "encoded", "teacher", "vsd_cd_lrm"):
        shutil.copytree(workdir / name, tmp_path / "W" / name)
    small = {"captions": 2, "videos_per_caption": 2, "clips": 2, "batch_size": 4, "repeats": 1}
    small |= {"fewer_steps": "(1,)", "teacher_samplers": "()"}
    fields = {"stages": "('report',)", "teacher.path": tmp_path / "W/teacher"}
    fields |= {f"report.metrics.{metric}.components": 0 for metric in ("frechet", "detail")}
    fields |= {**{f"report.{k}": v for k, v in small.items()}}
    result = run(train(tmp_path / "W", tmp_path / "encoded", **fields))
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "W/report/report.json").read_text())["rows"]
    names = ["data", "teacher", "teacher, 4 steps", "vsd_cd_lrm", "vsd_cd_lrm, 1 step"]
    assert [row["model"] for row in rows] == names
    assert all(np.isfinite(row[name]) for row in rows for name in ("frechet", "hf", "reward"))
    assert [row["vendi"] is None for row in rows] == [True, *[False] * 4]  # most captions have one clip
    assert [row["videos"] for row in rows[1:]] == [4] * 4


def test_a_second_run_in_a_workdir_is_refused(workdir, dataset):
    with (workdir / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(run(train(workdir, dataset)), "is in use", "--workdir")


def test_another_config_is_refused_and_the_same_one_does_nothing(workdir, dataset):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/*/state/manifest.ocdbt")}
    refused(run(train(workdir, dataset, **{"seed": 1})), "seed is 0 there, 1 here", "--workdir")
    assert run(train(workdir, dataset)).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/*/state/manifest.ocdbt")}


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
def test_bad_commands_are_refused(changes, words, tmp_path):
    options = {"config": "configs/shapes.py", "workdir": tmp_path / "W"} | changes
    refused(run(command("main", **options)), *words)
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
def test_bad_samples_are_refused(workdir, changes, words, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ring moving left")
    options = {"checkpoint": workdir / "vsd_cd_lrm", "prompts": tmp_path / "prompts.txt", "out": tmp_path / "out"}
    refused(run(command("sample", **options | changes)), *words)
    assert not (tmp_path / "out").exists()
