"""The command and its commands, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dollar_jax.evaluate.vbench import DIMENSIONS

ROOT = Path(__file__).parents[2]


def evaluate(*arguments):
    command = [sys.executable, "-m", "dollar_jax.evaluate", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


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


@pytest.mark.parametrize("command", [[], ["vbench"]])
def test_help(command):
    shown = evaluate(*command, "--help").stdout
    assert "vbench" in shown
    assert ("--results" in shown) == bool(command)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["vbnech", "--results=results.json"], "vbnech: no such command; give one of"),
        (["vbench", "--resluts=results.json"], "resluts"),
        (["vbench", "results.json"], "did you mean --results.json"),
        (["vbench", "--results=missing.json"], "missing.json"),
    ],
)
def test_bad_commands_are_refused(arguments, words):
    done = evaluate(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
