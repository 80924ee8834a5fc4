"""The notebook runs, with few updates; its students are nearer to data than their teacher in as many steps."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from docs import figures, plane

NOTEBOOK = Path(__file__).parents[1] / "docs/tour.ipynb"
FEWER = {"TEACHER_UPDATES": 600, "STUDENT_UPDATES": 60, "TUNING_UPDATES": 32, "STEPS": {4: "4 steps"}}


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

    distances, rewards = names["distances"], names["rewards"]
    assert distances["data"] < distances["teacher, 50 steps"] < distances["teacher, 4 steps"]
    for method in "VSD", "CD", "VSD + CD":
        assert distances[f"{method}, 4 steps"] < distances["teacher, 4 steps"]
    assert rewards["reward, VSD and CD, 32 updates"] > rewards["before"]


def test_the_committed_notebook_shows_its_pictures_and_is_small():
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) > 8
    assert NOTEBOOK.stat().st_size < 1e6
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    distances = {name: float(value) for name, value in re.findall(r"^(\w.*\S) +(0\.\d+)$", printed, re.M)}
    assert max(distances[f"{name}, 4 steps"] for name in ("VSD", "CD", "VSD + CD")) < distances["teacher, 4 steps"]
    assert distances["VSD, 1 step"] < distances["teacher, 4 steps"] < distances["CD, 1 step"]


@pytest.mark.parametrize("file", ["vsd.gif", "cd.gif", "lrm.gif"])
def test_the_committed_animations_are_those_of_the_script(file):
    assert file in (NOTEBOOK.parent / "explanation.md").read_text()
    path = NOTEBOOK.parent / file
    assert path.stat().st_size < 5e5
    with Image.open(path) as picture:
        assert picture.n_frames > figures.FRAMES


def test_an_animation_has_a_frame_for_each_state(tmp_path):
    movie = [plane.WORLD.centres + shift for shift in (0.0, 0.1, 0.2)]
    (tmp_path / "some.gif").write_bytes(figures.animation({"one": movie, "other": movie[::-1]}, ends=10, star=True))
    with Image.open(tmp_path / "some.gif") as picture:
        assert picture.n_frames == 3  # the frames at the end are one, shown for longer


def test_the_exact_denoiser_is_the_mean_over_many_points():
    """By importance: x0 drawn from data, weighted by how likely it makes x_t."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    x0, x_t, times = plane.WORLD.sample(keys), jnp.full((1, *plane.LATENT_SHAPE), 0.3), jnp.array([600.0])
    a, b = plane.SCHEDULE.at(times)
    weight = jax.nn.softmax(-((x_t - a * x0) ** 2).sum((1, 2, 3, 4)) / (2 * b.item() ** 2))
    expected = (weight[:, None, None, None, None] * x0).sum(0, keepdims=True)
    found, eps = plane.WORLD.denoise(x_t, times, plane.NO_CAPTION)
    np.testing.assert_allclose(found, expected, atol=0.03)
    np.testing.assert_allclose(a * found + b * eps, x_t, rtol=1e-5)


def test_the_distance_of_two_pairs_by_hand():
    """E|x - y| = 1/2 (1 + 1), E|x - x'| = 1/2 2, E|y - y'| = 0."""
    one, other = np.array([[-1.0, 0.0], [1.0, 0.0]], np.float32), np.zeros((2, 2), np.float32)
    assert plane.distance(one, other) == pytest.approx(1.0)
