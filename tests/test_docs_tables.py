"""The tables of the pages: they show the numbers that runs left, beside the commands that make them."""

import json
import re

import pytest

from docs.tables import COLUMNS, NUMBERS, PAGES, TABLE, around, keep, needed, page, table

KEPT = sorted(NUMBERS.glob("*.json"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_show_the_kept_numbers(path):
    text = path.read_text()
    assert page(text) == text, "run python -m docs.tables"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_numbers_stand_beside_their_command(path):
    content = json.loads(path.read_text())
    assert re.fullmatch(r"[0-9a-f]{7,40}", content["commit"])
    showing = [text for text in (one.read_text() for one in PAGES) if f"{path.stem}/" in "".join(specs(text))]
    assert showing, f"no page shows {path.name}"
    for text in showing:
        assert content["commit"] in text
        if "command" in content:
            lines = [line.split() for line in text.replace("\\\n", " ").splitlines()]
            assert any(set(content["command"].split()) <= set(line) for line in lines), content["command"]


def specs(text):
    return [found[1] for found in TABLE.finditer(text)]


def test_cells():
    row = {"frechet": [1.0, 2.0, 3.0], "alignment": [0.99], "reward": [None]}
    assert around("frechet", None)(row) == "2.00 ± 1.00"
    assert around("frechet", None)({"frechet": [216, 211]}) == "214 ± 4"
    assert around("alignment", 1, 100)(row) == "99.0"
    assert around("reward", 3)(row) == around("vendi", 2)(row) == ""
    assert COLUMNS["calls"].cell({"calls": 4}) == "4"
    with pytest.raises(ValueError, match="invalid literal"):  # of a stranger's report
        COLUMNS["calls"].cell({"calls": "<img src=x onerror=alert(1)>"})
    cells = [needed({"memory": {"needed": gigabytes * 1e9, "available": 80e9}}) for gigabytes in (20, 78.4, 81)]
    assert cells == ["20.0 GB", "78.4 GB: hardly fits", "81.0 GB: does not fit"]


def test_plans_keep_their_commands(tmp_path, monkeypatch):
    (tmp_path / "plans").mkdir()
    memory = {"needed": 78.4e9, "available": 80e9, "temporary": {"generator": 8e9, "fake_score": 9e9}}
    plan = {"command": "python -m dollar_jax.plan --out=/a/b.json --topology=h100:1", "memory": memory}
    plan |= {"devices": 1, "mesh": {}, "seconds": 1250.4, "compile_seconds": 163.2}
    plan |= {"predicted": 15.24, "use": [0.52, 0.466], "flops": {"total": 18.76e9}}
    (tmp_path / "plans" / "wan.json").write_text(json.dumps(plan))
    monkeypatch.setattr("docs.tables.NUMBERS", tmp_path)
    keep("0123abc", [tmp_path / "plans"])
    kept = json.loads((tmp_path / "plans.json").read_text())["models"]["wan"]
    assert kept["command"] == "python -m dollar_jax.plan --topology=h100:1"
    columns = ["needed", "temporary", "available", "compiled", "bound", "predicted", "use", "use_once", "arithmetic"]
    line = table({"rows": {"plans/wan": "1.3B | h100:1"}, "title": "network | machine", "columns": columns})
    assert line.endswith(
        "\n| 1.3B | h100:1 | 78.4 GB: hardly fits | 9.0 GB | 80.0 GB | 163 s | 1250 s | 15.2 s | 52.0% | 46.6% |"
        " 18.8 |\n"
    )


def test_numbers_of_runs_become_a_table(tmp_path, monkeypatch):
    for seed, distance in enumerate((2.0, 4.0)):
        folder = tmp_path / "trial" / str(seed)
        (folder / "report").mkdir(parents=True)
        row = {"model": "vsd", "videos": 8, "steps": 4, "calls": 4, "frechet": distance}
        rows = [row, row | {"model": "vsd, 1 step", "calls": 1, "frechet": 3 * distance}]
        report = {"rows": rows, "meta": {"machine": "a laptop"}}
        (folder / "report" / "report.json").write_text(json.dumps(report))
        (folder / "config.json").write_text(json.dumps({"seed": seed, "teacher": {"path": str(seed), "steps": 50}}))
        (folder / "vsd").mkdir()
        (folder / "vsd" / "metrics.jsonl").write_text('{"step": 0, "seconds_per_step": 0.5}\n')
    monkeypatch.setattr("docs.tables.NUMBERS", tmp_path)
    keep("0123abc", [tmp_path / "trial"])
    (tmp_path / "costs.json").write_text(json.dumps({"models": {"vsd": {"flops": 1.5e9}}}))
    kept = json.loads((tmp_path / "trial.json").read_text())
    assert kept["command"] == "python -m dollar_jax.laboratory --experiment=trial --out=DIR --seeds=0,1"
    assert kept["config"] == {"teacher": {"steps": 50}}
    spec = {"rows": {"trial/vsd": "VSD"}, "columns": ["calls", "frechet", "frechet_each", "update"]}
    assert table(spec) == (
        "| | calls | Fréchet | Fréchet, each seed | s an update |\n"
        "|---|---|---|---|---|\n"
        "| VSD | 4 | 3.00 ± 1.41 | 2.00, 4.00 | 0.50 ± 0.00 |\n"
    )
    spec["columns"] = ["costs/arithmetic", "frechet, 2 steps", "frechet", "frechet, 1 step"]
    assert table(spec) == (
        "| | GFLOP an update | Fréchet, 2 steps | Fréchet | Fréchet, 1 step |\n"
        "|---|---|---|---|---|\n"
        "| VSD | 1.5 | | 3.00 ± 1.41 | 9.00 ± 4.24 |\n"
    )
