"""The tables of the pages: they show the numbers that runs left, beside the commands that make them."""

import json
import re

import pytest

from docs.tables import NUMBERS, PAGES, TABLE, around, keep, needed, page, table

KEPT = sorted(NUMBERS.glob("*.json"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_show_the_kept_numbers(path):
    text = path.read_text()
    assert page(text) == text, "run python -m docs.tables"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_numbers_stand_beside_their_command(path):
    content = json.loads(path.read_text())
    assert re.fullmatch(r"[0-9a-f]{7,40}", content["commit"])
    showing = [text for text in (one.read_text() for one in PAGES) if any(path.stem in spec for spec in specs(text))]
    assert showing, f"no page shows {path.name}"
    words = content["command"].split()
    for text in showing:
        assert content["commit"] in text
        lines = [line.split() for line in text.replace("\\\n", " ").splitlines()]
        assert any(set(words) <= set(line) for line in lines), content["command"]


def specs(text):
    return [found[1] for found in TABLE.finditer(text)]


def test_cells():
    row = {"frechet": [1.0, 2.0, 3.0], "alignment": [0.99], "reward": [None]}
    assert around("frechet", None)(row) == "2.00 ± 1.00"
    assert around("frechet", None)({"frechet": [216, 211]}) == "214 ± 4"
    assert around("alignment", 1, 100)(row) == "99.0"
    assert around("reward", 3)(row) == around("vendi", 2)(row) == ""
    cells = [needed({"memory": {"needed": gigabytes * 1e9, "available": 80e9}}) for gigabytes in (20, 78.4, 81)]
    assert cells == ["20.0 GB", "78.4 GB: hardly fits", "81.0 GB: does not fit"]


def test_numbers_of_runs_become_a_table(tmp_path, monkeypatch):
    for seed, distance in enumerate((2.0, 4.0)):
        folder = tmp_path / "trial" / str(seed)
        (folder / "report").mkdir(parents=True)
        row = {"model": "vsd", "videos": 8, "steps": 4, "calls": 4, "frechet": distance}
        report = {"rows": [row], "meta": {"machine": "a laptop"}}
        (folder / "report" / "report.json").write_text(json.dumps(report))
        (folder / "config.json").write_text(json.dumps({"seed": seed, "teacher": {"path": str(seed), "steps": 50}}))
        (folder / "vsd").mkdir()
        (folder / "vsd" / "metrics.jsonl").write_text('{"step": 0, "seconds_per_step": 0.5}\n')
    monkeypatch.setattr("docs.tables.NUMBERS", tmp_path)
    keep("0123abc", [tmp_path / "trial"])
    kept = json.loads((tmp_path / "trial.json").read_text())
    assert kept["command"] == "python -m dollar_jax.laboratory --experiment=trial --out=DIR --seeds=0,1"
    assert kept["config"] == {"teacher": {"steps": 50}}
    spec = {"rows": {"trial/vsd": "VSD"}, "columns": ["calls", "frechet", "frechet_each", "update"]}
    assert table(spec) == (
        "| | calls | Fréchet | Fréchet, each seed | s an update |\n"
        "|---|---|---|---|---|\n"
        "| VSD | 4 | 3.00 ± 1.41 | 2.00, 4.00 | 0.50 ± 0.00 |\n"
    )
