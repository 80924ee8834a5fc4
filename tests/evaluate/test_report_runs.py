"""Reports of several runs; what each left behind is written by `write_report` itself."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from browser import needs_browser, open_browser, requested
from page import Page

from dollar_jax.evaluate.report import write_report
from dollar_jax.evaluate.report_runs import combine
from dollar_jax.importing import UserError

CONFIG = {"seed": 0, "rollout": "simulate", "times": [249, 499], "mesh": {"data": 1}, "teacher": {"path": ""}}


def noise(*shape, seed):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def finish(workdir, frechet=2.0, captions=("a red ring", "a blue cross"), shape=(9, 16, 16), seconds=0.01, **fields):
    """What a run leaves in its workdir."""
    rows = [
        {"model": "data", "videos": 300, "frechet": 1.0},
        {"model": "teacher", "objectives": [], "steps": 50, "calls": 100, "videos": 300, "frechet": 4.0}
        | {"diffusion_seconds_per_video": 0.1},
        {"model": "student", "objectives": ["consistency"], "steps": 4, "calls": 4, "videos": 300, "frechet": frechet}
        | {"diffusion_seconds_per_video": seconds},
    ]
    clips = {name: noise(2, *shape, 3, seed=i) for i, name in enumerate(["teacher", "student"])}
    meta = {"title": "A run", "student": "student", "captions": list(captions), "fps": 8, "command": "python -m main"}
    meta |= {"machine": "two CPU cores", "configs": {"student": f"seed: {fields.get('seed', 0)}"}}
    lines = [{"step": step, "time": 0.0, "loss": frechet + step} for step in (0, 5, 9)]
    write_report(workdir / "report", rows, clips, {"student": lines}, meta)
    (workdir / "student").mkdir()
    (workdir / "student" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (workdir / "config.json").write_text(json.dumps(CONFIG | fields))
    return workdir


def outcome(folder):
    return (folder / "index.html").read_text("utf-8"), json.loads((folder / "report.json").read_text("utf-8"))


def test_one_run_gives_its_own_report_again(tmp_path):
    workdir = finish(tmp_path / "w")
    before = {
        name: (workdir / "report" / name).read_text("utf-8") for name in ("index.html", "report.json", "report.md")
    }
    combine([("", workdir)], tmp_path / "again", "python -m x")
    assert {name: (tmp_path / "again" / name).read_text("utf-8") for name in before} == before


def test_seeds_become_mean_and_spread_by_hand(tmp_path):
    machines = [{"data": 1}, {"data": 2}, {"data": 1}]
    runs = [
        ("", finish(tmp_path / f"s{seed}", frechet, seed=seed, mesh=machines[seed], teacher={"path": f"t{seed}"}))
        for seed, frechet in enumerate([2.5, 3.0, 3.5])
    ]
    combine(runs, tmp_path / "all", "python -m x")
    page, numbers = outcome(tmp_path / "all")
    rows = {row["model"]: row for row in numbers["rows"]}
    assert list(rows) == ["data", "teacher", "student"]
    assert rows["student"]["frechet"] == pytest.approx(3)
    assert rows["student"]["std"]["frechet"] == pytest.approx(0.5)
    assert (rows["student"]["seeds"], rows["student"]["objectives"]) == (3, ["consistency"])
    text = Page(page).text
    assert "student CD 4 4 x 10.0 x 25 3.00 ± 0.50 10 ± 0 ms 300 3" in text
    assert "Numbers are means of 3 runs" in text
    # Data at 1 and the teacher at 4 lie at 4 and 96 of 100: so do 2.5 at 50 and 3.5 at 80.67.
    (dots,) = re.findall(r'class="range" x1="([\d.]+)%" x2="([\d.]+)%"', page.split("<h3>Time")[0])[-1:]
    assert [float(end) for end in dots] == [50, 80.67]
    assert "3.00 ± 0.50" in (tmp_path / "all" / "report.md").read_text("utf-8")
    assert [run["seed"] for run in numbers["meta"]["runs"]] == [0, 1, 2]
    assert numbers["meta"]["command"] == "python -m x"
    # One box for the loss, 12.5 at its top and 2.5 at its bottom, with a curve of each seed.
    (box,) = re.findall(r'aria-label="student, loss: from 3 to 12 in 9 steps">(.*?)</svg>', page, re.DOTALL)
    assert re.findall(r'd="(M\S+ \S+?)L', box) == ["M0 100", "M0 95", "M0 90"]


def test_variants_stand_side_by_side_with_what_differs(tmp_path):
    runs = [
        ("full", finish(tmp_path / "f0", 1.0)),
        ("full", finish(tmp_path / "f1", 2.0, seed=1)),
        ("data", finish(tmp_path / "d0", 5.0, rollout="data", times=[499])),
    ]
    combine(runs, tmp_path / "all", "python -m x")
    page, numbers = outcome(tmp_path / "all")
    rows = {(row["variant"], row["model"]): row for row in numbers["rows"]}
    assert rows["full", "student"]["frechet"] == pytest.approx(1.5)
    assert rows["data", "student"]["frechet"] == 5
    assert "std" not in rows["data", "student"]
    assert numbers["meta"]["differences"] == {
        "rollout": {"full": "simulate", "data": "data"},
        "times": {"full": "[249, 499]", "data": "[499]"},
    }
    text = Page(page).text
    assert "2 variants of one experiment" in text
    assert "full: student" in text
    assert "rollout simulate data" in text
    assert page.count('class="clip m') == 8  # of the first seeds: two models, two captions, two variants
    assert "| `rollout` | simulate | data |" in (tmp_path / "all" / "report.md").read_text("utf-8")
    assert 'class="smooth v0"' in page
    assert 'class="smooth v1"' in page


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    first = ("", finish(tmp_path / "a"))
    with pytest.raises(
        UserError, match=r"b is no seed of .*a: rollout is simulate there, data here; name the variants"
    ):
        combine([first, ("", finish(tmp_path / "b", rollout="data"))], tmp_path / "out", "")
    with pytest.raises(UserError, match="have other captions: make a report of each"):
        combine([first, ("", finish(tmp_path / "c", captions=("x", "y")))], tmp_path / "out", "")
    with pytest.raises(UserError, match="have other frames, height, width or fps"):
        combine([first, ("", finish(tmp_path / "d", shape=(5, 16, 16)))], tmp_path / "out", "")
    with pytest.raises(UserError, match=r"none has no report .*report\.json is missing"):
        combine([first, ("", tmp_path / "none")], tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path):
    workdirs = [
        finish(tmp_path / name, frechet, seed=seed) for seed, (name, frechet) in enumerate({"a": 1.0, "b": 3.0}.items())
    ]

    def command(*flags):
        arguments = [sys.executable, "-m", "dollar_jax.evaluate", "report", *flags]
        return subprocess.run(arguments, capture_output=True, text=True)

    both = [f"--workdir={workdir}" for workdir in workdirs]
    result = command(*both, f"--out={tmp_path / 'o'}")
    assert (result.stdout, result.stderr) == (f"report: {tmp_path / 'o' / 'index.html'}\n", "")
    _, numbers = outcome(tmp_path / "o")
    assert numbers["rows"][2]["frechet"] == pytest.approx(2)
    assert numbers["meta"]["command"].startswith(f"python -m dollar_jax.evaluate report {both[0]}")
    refused = command(*both)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --out is missing: where shall the report of several runs go?\n",
    )
    assert "either all of --workdir name a variant" in command(both[0], f"--workdir=x={workdirs[1]}", "--out=o").stderr


@needs_browser
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (375, True)])
def test_pages_in_a_browser_fit_and_ask_nobody_for_anything(tmp_path, width, phone):
    from selenium.webdriver.support.ui import WebDriverWait

    small = [("full", finish(tmp_path / "f0")), ("data", finish(tmp_path / "d0", 5.0, rollout="data"))]
    combine(small, tmp_path / "small", "python -m x " + "--workdir=a=b " * 9)
    combine([("", finish(tmp_path / "large", shape=(40, 96, 160)))], tmp_path / "large", "python -m x")
    with open_browser(tmp_path / "profile", width=width, phone=phone) as browser:

        def open_page(folder):
            address = (tmp_path / folder / "index.html").as_uri()
            browser.get(address)
            assert requested(browser) <= {address}
            assert script("document.documentElement.scrollWidth") == width
            assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]

        def script(code):
            return browser.execute_script(f"return {code}")

        def until(code):
            WebDriverWait(browser, 20).until(lambda browser: script(code))

        open_page("small")
        assert script("getComputedStyle(document.querySelector('.row .clip')).animationName") == "play"
        script("document.querySelector('#pause').click()")
        assert script("getComputedStyle(document.querySelector('.row .clip')).animationPlayState") == "paused"
        script("document.querySelector('#still').click()")
        assert script("getComputedStyle(document.querySelector('.row .clip')).animationName") == "none"

        open_page("large")
        films = "[...document.querySelectorAll('.film')]"
        until(f"{films}.some(film => !film.paused && film.currentTime > 0)")
        assert script(f"{films}.every(film => !film.error)")
        script("document.querySelector('#pause').click()")
        until(f"{films}.every(film => film.paused)")
        script("document.querySelector('#still').click()")
        assert script("getComputedStyle(document.querySelector('.row .film')).display") == "none"
        until("[...document.querySelectorAll('.grid')].every(grid => grid.naturalWidth === 5 * 160)")
