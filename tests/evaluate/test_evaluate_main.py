"""The command and its commands, in processes of their own."""

import json

import pytest
import toy_pipeline
from commands import run

from dollar_jax.checkpoint import digest, read_card, write_card
from dollar_jax.evaluate.vbench import DIMENSIONS


def evaluate(*arguments):
    return run(["evaluate", *arguments])


def results(folder, **changes):
    path = folder / "results.json"
    values = {name: [0.8, []] for name in DIMENSIONS} | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return path


def test_results_become_scores(tmp_path):
    done = evaluate("vbench", f"--results={results(tmp_path)}", f"--out={tmp_path}/scores.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    *table, last = done.stdout.splitlines()
    assert json.loads(last) == scores
    assert scores.keys() == {"quality", "semantic", "total"}
    assert table[-1].split() == ["total", f"{scores['total']:.2f}"]


def test_missing_dimensions_are_named(tmp_path):
    """What is complete is printed; no score is made of what is not."""
    path = results(tmp_path, scene=None, color=None)
    done = evaluate("vbench", f"--results={path}", f"--out={tmp_path}/scores.json")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "has no color, scene" in line
    assert "no semantic and no total score" in line
    assert done.stdout.splitlines()[-1].split() == ["total", "-"]
    assert not (tmp_path / "scores.json").exists()


def test_prompts_become_videos(tmp_path):
    short, long = ["a pear", "a cat", "a dog"], ["a ripe pear", "a cat that sits", "a dog that runs"]
    for name, lines in (("short", short), ("long", long), ("flickering", short[1:2])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    checkpoint, out = toy_pipeline.write(tmp_path / "student", long), tmp_path / "out"
    lists = {"prompts": "long", "short_prompts": "short", "flickering_prompts": "flickering"}
    flags = [f"--{flag}={tmp_path / name}.txt" for flag, name in lists.items()]
    flags += [f"--checkpoint={checkpoint}", f"--out={out}", "--steps=1", "--trust=toy_pipeline"]
    done = evaluate("vbench", *flags, "--seed=3")
    assert done.returncode == 0, done.stderr
    counts = dict(zip(short, (5, 25, 5), strict=True))
    names = {f"{name}-{video}.mp4" for name, count in counts.items() for video in range(count)}
    assert {path.name for path in out.iterdir()} == names
    assert "35 videos in" in done.stdout
    assert "35 of them new" in done.stdout
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["videos"]["a cat-24.mp4"] == {"prompt": "a cat that sits", "noise": [1, 24]}
    known = {"seed": 3, "times": [999], "guidance": 0.0, "sampler": "renoise", "dtype": "float32", "tiled": False}
    assert known.items() <= manifest.items()
    parts = {part: digest(checkpoint, read_card(checkpoint)[part]) for part in ("transformer", "vae", "text_encoder")}
    assert parts.items() <= manifest.items()
    (again,) = evaluate("vbench", *flags, "--seed=3", "--dtype=bfloat16").stderr.splitlines()
    assert "dtype is 'float32' there, 'bfloat16' here" in again


def test_parts_of_a_video_are_timed(tmp_path):
    """A student beside a teacher with guidance, made for larger videos: four calls of the network to two and one."""
    teacher, student = (toy_pipeline.write(tmp_path / name, ["a cat"]) for name in ("teacher", "student"))
    larger = {"video": {"frames": 4, "height": 32, "width": 32, "fps": 8, "independent_chunk": 0}}
    write_card(
        teacher, read_card(teacher) | larger | {"role": "teacher", "guidance": 2.0, "latent_shape": [4, 4, 4, 4]}
    )
    flags = [f"--teacher={teacher}", f"--student={student}", f"--out={tmp_path}/timing.json", "--repeats=3"]
    flags.append("--trust=toy_pipeline")
    done = evaluate("timing", *flags, "--batch_size=2")
    assert done.returncode == 0, done.stderr
    table = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row[:2]] for row in table[1:]] == [
        ["teacher, 2 steps", "4"],
        ["student, 2 steps", "2"],
        ["student, 1 step", "1"],
    ]
    found = json.loads((tmp_path / "timing.json").read_text())
    assert [row["bound"] for row in found["rows"]] == [1, 2, 4]
    assert found["seconds"].keys() == {"text", "decoding", *(row["model"] for row in found["rows"])}
    assert all(0 < part["median"] < 5 for part in found["seconds"].values())
    ratio = found["seconds"]["teacher, 2 steps"]["median"] / found["seconds"]["student, 1 step"]["median"]
    assert found["rows"][2]["speed_up"] == pytest.approx(ratio)
    assert f"{ratio:.1f} (4)" in table[3][-1]
    assert found["video"] == "2 x 16 x 16"


@pytest.mark.slow  # half a minute
def test_memory_is_measured_without_weights(tmp_path):
    done = evaluate("memory", "--frames=1", f"--out={tmp_path}/memory.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    names = ["image LRM", "text-image LRM", "CLIP-H", "CLIP-H"]
    assert [(row["name"], row["parameters"]) for row in rows] == list(
        zip(names, [189_441, 763_009, 632_076_800, 632_076_800], strict=True)
    )
    shown = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert all(name in shown for name in names)


@pytest.mark.parametrize("command", ["", "vbench", "memory", "timing"])
def test_help(command):
    shown = evaluate(*([command] if command else []), "--help").stdout
    assert command in shown
    assert ("--results" in shown) == (command == "vbench")
    assert ("--topology" in shown) == (command == "memory")
    assert ("--teacher" in shown) == (command == "timing")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["vbnech", "--results=results.json"], "vbnech: no such command; give one of"),
        (["vbench", "--resluts=results.json"], "resluts"),
        (["vbench", "results.json"], "did you mean --results.json"),
        (["vbench", "--results=missing.json"], "missing.json"),
        (["vbench"], "either --results=FILE.json"),
        (["timing", "--teacher=T"], "--student is missing"),
        (["timing", "--teacher=T", "--student=S", "--steps=4,0"], "wanted numbers, as in 4,2,1"),
        (["memory", "--topology=v9:2x2"], "no chip 'v9'"),
        (["vbench", "--results=a.json", "--checkpoint=C"], "either --results=FILE.json"),
        (["vbench", "--checkpoint=C", "--prompts=missing.txt"], "--out is missing"),
        (["vbench", "--checkpoint=C", "--prompts=requirements.txt", "--short_prompts=no.txt", "--out=D"], "--short_p"),
    ],
)
def test_bad_commands_are_refused(arguments, words):
    done = evaluate(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
