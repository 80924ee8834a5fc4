"""The notebook runs, here with few updates, and its students are nearer to data than their teacher in as many steps."""

import json
from pathlib import Path

import matplotlib
from matplotlib import pyplot

NOTEBOOK = Path(__file__).parents[1] / "docs/tour.ipynb"
FEWER = {"TEACHER_UPDATES": 600, "STUDENT_UPDATES": 60, "TUNING_UPDATES": 16}


def code_cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs_and_its_students_are_near_data(monkeypatch):
    monkeypatch.chdir(NOTEBOOK.parent)
    matplotlib.use("agg")
    names = {}
    for cell in code_cells():
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert names.keys() >= FEWER.keys()
            names |= FEWER
    pyplot.close("all")

    distances, rewards = names["distances"], list(names["rewards"].values())
    assert distances["data"] < distances["teacher, 50 steps"] < distances["teacher, 4 steps"]
    for method in "VSD", "CD", "VSD + CD":
        assert distances[f"{method}, 4 steps"] < distances["teacher, 4 steps"]
    assert distances["VSD, 1 step"] < distances["CD, 1 step"]
    assert rewards[0] < min(rewards[4], rewards[-1])


def test_the_committed_notebook_shows_its_pictures_and_is_small():
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) > 8
    assert NOTEBOOK.stat().st_size < 1e6
