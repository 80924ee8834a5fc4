"""Reports of several runs; what each left behind is written by `write_report` itself."""

import json
import re
import shutil

import numpy as np
import pytest
from browser import needs_browser, open_browser, requested
from commands import run
from page import Page

from dollar_jax.errors import UserError
from dollar_jax.evaluate.metrics.frechet import Frechet
from dollar_jax.evaluate.report import write_report
from dollar_jax.evaluate.report_rows import SECONDS
from dollar_jax.evaluate.report_runs import combine

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
    lines = [{"step": step, "time": 0.0, "loss": (frechet or 0.0) + step} for step in (0, 5, 9)]
    columns = [*Frechet.columns, SECONDS]
    write_report(workdir / "report", rows, columns, clips, {"student": lines}, meta)
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


def test_a_seed_without_a_value_is_left_out_of_the_mean(tmp_path):
    runs = [finish(tmp_path / f"s{seed}", value, seed=seed) for seed, value in enumerate([2.5, None, 3.5])]
    combine([("", run) for run in runs], tmp_path / "all", "python -m x")
    (row,) = [row for row in outcome(tmp_path / "all")[1]["rows"] if row["model"] == "student"]
    assert row["frechet"] == pytest.approx(3)
    combine([("", run) for run in runs[1:2]], tmp_path / "one", "python -m x")
    assert outcome(tmp_path / "one")[1]["rows"][2]["frechet"] is None


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
    with pytest.raises(UserError, match="differ in captions: make one report for each"):
        combine([first, ("", finish(tmp_path / "c", captions=("x", "y")))], tmp_path / "out", "")
    with pytest.raises(UserError, match="differ in frames, height, width or fps"):
        combine([first, ("", finish(tmp_path / "d", shape=(5, 16, 16)))], tmp_path / "out", "")
    with pytest.raises(UserError, match=r"none has no report .*report\.json is missing"):
        combine([first, ("", tmp_path / "none")], tmp_path / "out", "")
    change(finish(tmp_path / "e", seed=1), columns__0__unit="dB")
    with pytest.raises(UserError, match=r"a and .*e differ in unit or direction of frechet: make one report for each"):
        combine([first, ("", tmp_path / "e")], tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_runs_may_measure_different_things(tmp_path):
    """The columns of all; a key that is a method of a dictionary is one like any other."""
    runs = [("", finish(tmp_path / name, seed=seed)) for seed, name in enumerate("abc")]
    for seed in (1, 2):
        change(runs[seed][1], columns__0__key="values", columns__0__label="Own", rows__2__values=float(seed))
        change(runs[seed][1], rows__1__frechet=None, rows__2__frechet=None)
    combine(runs, tmp_path / "all", "python -m x")
    page, numbers = outcome(tmp_path / "all")
    assert [column["key"] for column in numbers["columns"]] == ["frechet", "diffusion_seconds_per_video", "values"]
    table = (tmp_path / "all/report.md").read_text("utf-8")
    assert "| 2.00 | 10 ± 0 ms | 1.50 ± 0.71 | 300 | 3 |" in table  # 2 of the first run; 1 and 2 of the others
    assert re.search(r"\| 4\.00 \| 100 ± \S+ ms \| \N{EN DASH} \| 300 \| 3 \|", table)
    assert "2.00 10 ± 0 ms 1.50 ± 0.71 300 3" in Page(page).text
    # A column of one is a key that another one, which is a stranger's, has not declared.
    change(runs[2][1], rows__2__frechet="2")
    with pytest.raises(UserError, match=r"c/report/report\.json: rows\.2\.frechet"):
        combine(runs, tmp_path / "again", "python -m x")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, to be left as it is."""
    return finish(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def workdir(finished, tmp_path):
    """A finished run, to be damaged."""
    return shutil.copytree(finished, tmp_path / "w")


def change(workdir, name="report/report.json", **fields):
    """Rewrites a JSON file of a run: dotted names with __ for the dot, a function of the old value or a new one."""
    path = workdir / name
    content = json.loads(path.read_text("utf-8"))
    for field, value in fields.items():
        *parents, last = field.split("__")
        inner = content
        for parent in parents:
            inner = inner[int(parent) if parent.isdigit() else parent]
        last = int(last) if last.isdigit() else last
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["report/report.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff{}", b"[" * 100_000, b'{"seed": NaN}'])
def test_a_file_that_is_no_json_object_is_one_line(workdir, finished, name, content):
    (workdir / name).write_bytes(content)
    refused(workdir, f"w/{name}", finished)


def refused(workdir, words, other):
    """The report of this run, alone or beside another one, is refused in one line that says so; nothing is written."""
    for runs, said in (([("", workdir)], words), ([("a", other), ("b", workdir)], "w")):
        with pytest.raises(UserError, match=said) as caught:
            combine(runs, workdir.with_name("out"), "python -m x")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600
    assert not workdir.with_name("out").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rows": {}}, "rows"),
        ({"rows": []}, "rows"),
        ({"rows": ["teacher"]}, r"rows\.0"),
        ({"rows": None}, "'rows' is a required property"),
        ({"rows__1__model": None}, r"rows\.1: 'model' is a required property"),
        ({"rows__1__model": ["teacher"]}, r"rows\.1\.model"),
        ({"rows__1__model": "somebody"}, "no row of the teacher"),
        ({"rows__2__model": "teacher"}, "two rows with the name 'teacher'"),
        ({"rows__1__calls": 0}, r"rows\.1\.calls"),
        ({"rows__1__calls": "many"}, r"rows\.1\.calls"),
        ({"rows__1__calls": None}, "no calls"),
        ({"rows__2__steps": None}, "no steps"),
        ({"rows__0__videos": None}, "'videos' is a required property"),
        ({"rows__2__objectives": "VSD"}, r"rows\.2\.objectives"),
        ({"rows__2__frechet": "2.0"}, r"rows\.2\.frechet"),
        ({"rows__2__frechet": True}, r"rows\.2\.frechet"),
        ({"rows__2__frechet": 10**400}, r"rows\.2\.frechet"),
        ({"rows__2__diffusion_seconds_per_video": -1.0}, r"rows\.2\.diffusion_seconds_per_video"),
        ({"columns": None}, "'columns' is a required property"),
        ({"columns__0__key": "a b"}, r"columns\.0\.key"),
        ({"columns__0__key": "steps"}, "'steps' is a key of several columns, or reserved"),
        ({"columns__1__key": "frechet"}, "'frechet' is a key of several columns, or reserved"),
        ({"columns__0__key": "model"}, "'model' is a key of several"),
        ({"columns__0__better": "best"}, r"columns\.0\.better"),
        ({"columns__0__ideal": "0"}, r"columns\.0\.ideal"),
        ({"columns__0__shown": 1}, r"columns\.0\.shown"),
        ({"columns__0__label": None}, "'label' is a required property"),
        ({"columns__0__module": "os"}, "'module' was unexpected"),
        ({"columns__0__key": "mine", "rows__2__mine": "2"}, r"rows\.2\.mine"),
        ({"rows__2__std": {"frechet": 1.0}}, "of several runs"),
        ({"rows__2__variant": "x"}, "of several runs"),
        ({"meta": []}, "meta"),
        ({"meta__title": 3}, r"meta\.title"),
        ({"meta__student": "nobody"}, "no row of the student"),
        ({"meta__captions": "a red ring"}, r"meta\.captions"),
        ({"meta__captions__0": {"a": 1}}, r"meta\.captions\.0"),
        ({"meta__captions__0": "\ud800"}, "no text"),
        ({"meta__captions": ["a red ring"] * 3}, r"teacher/2\.png is missing"),
        ({"meta__look": [9, 16, 16]}, r"meta\.look"),
        ({"meta__look": [9, 16, 16, 8, 1]}, r"meta\.look"),
        ({"meta__look": [9, 16, 0, 8]}, r"meta\.look"),
        ({"meta__look": [9, 16, 10**400, 8]}, r"meta\.look"),
        ({"meta__look": None}, "'look' is a required property"),
        ({"meta__clips": ["teacher"]}, "no clips of the student"),
        ({"meta__clips": ["teacher", "student", "stranger"]}, "'stranger', which has no row"),
        ({"meta__stages": {"a": 1}}, r"meta\.stages"),
        ({"meta__variety": "0"}, r"meta\.variety"),
        ({"meta__variety": [0] * 1000}, r"meta\.variety"),
        ({"meta__variety": [0, 2]}, "variety names a clip that is not there"),
        ({"meta__command": ["rm"]}, r"meta\.command"),
        ({"meta__configs": {"a": 1}}, r"meta\.configs"),
        ({"meta__runs": [{"workdir": "w"}]}, "of several runs"),
    ],
)
def test_a_damaged_report_is_one_line_that_says_where(workdir, finished, fields, words):
    change(workdir, **fields)
    refused(workdir, words, finished)


def test_missing_and_damaged_parts_of_a_run_are_one_line(workdir, finished):
    log = workdir / "student" / "metrics.jsonl"
    before = log.read_bytes()
    for line in (b"{\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": 1, "loss": "x"}\n', b'{"step": "1"}\n', b"\xff\n"):
        log.write_bytes(line)
        refused(workdir, r"student/metrics\.jsonl", finished)
    log.write_bytes(before)
    (workdir / "report" / "clips" / "student" / "1.png").unlink()
    refused(workdir, r"student/1\.png is missing", finished)
    shutil.rmtree(workdir / "report" / "clips")
    refused(workdir, r"teacher/0\.png is missing", finished)


@pytest.mark.parametrize("name", ["../../../secret", "/etc", "..", "a/../../../secret", "~root", "a\0b"])
def test_no_name_in_a_report_leads_out_of_the_run(workdir, finished, name):
    change(workdir, meta__stages=[name])
    refused(workdir, "outside itself|is not a valid path", finished)
    change(workdir, meta__stages=["student"], meta__clips=["teacher", name], meta__student=name, rows__2__model=name)
    refused(workdir, "outside itself|is not a valid path", finished)


def test_no_link_in_a_run_leads_out_of_it(workdir, finished):
    secret = workdir.with_name("secret")
    secret.write_text("of the user")
    clip = workdir / "report" / "clips" / "student" / "0.png"
    clip.unlink()
    clip.symlink_to(secret)
    refused(workdir, r"points to '0\.png', outside itself", finished)
    clip.unlink()
    shutil.copy(finished / "report" / "clips" / "student" / "0.png", clip)
    log = workdir / "student" / "metrics.jsonl"
    log.unlink()
    log.symlink_to(secret)
    refused(workdir, r"points to 'student/metrics\.jsonl', outside itself", finished)


@pytest.mark.parametrize("name", ["config.json", "report/report.json", "report/clips", "report"])
def test_a_config_and_a_report_of_elsewhere_are_neither_shown_nor_written(workdir, finished, name):
    """`evaluate report --workdir=W` would write into W/report."""
    elsewhere = workdir.with_name("elsewhere")
    (workdir / name).rename(elsewhere)
    (workdir / name).symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="outside itself"):
        combine([("", workdir)], workdir / "report", "python -m x")
    refused(workdir, "outside itself", finished)
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before


def test_what_a_stranger_wrote_is_text_on_the_page(tmp_path):
    evil = "<script>alert(1)</script>\"'></style>![x](//evil)"
    workdir = finish(tmp_path / "w", captions=(evil, evil))
    (workdir / "report" / "clips" / "student").rename(workdir / "report" / "clips" / "evil")
    change(workdir, rows__2__model="evil", rows__2__objectives=[evil], meta__clips=["teacher", "evil"])
    change(workdir, meta__student="evil", meta__title=evil, meta__command=evil, meta__machine=evil)
    change(workdir, meta__configs={evil: evil}, columns__0__label=evil, columns__0__meaning=evil, columns__0__unit=evil)
    combine([("", workdir)], tmp_path / "one", "python -m x")
    other = finish(tmp_path / "v", captions=(evil, evil), **{evil: evil, "rollout": evil})
    change(other, columns__0__unit=evil)
    combine([(evil, workdir), ("b", other)], tmp_path / "two", "python -m x")
    for folder in ("one", "two"):
        page, _ = outcome(tmp_path / folder)
        assert "<script" not in page
        assert page.count("</style>") == 1
        assert Page(page).text.count("alert(1)") > 3
        text = (tmp_path / folder / "report.md").read_text("utf-8").replace(f"    {evil}", "")
        assert "<script" not in text
        assert "](" not in text  # a picture or a link


def test_a_config_cannot_move_the_cursor_of_whoever_is_told_of_it(tmp_path):
    first = ("", finish(tmp_path / "a"))
    evil = ("", finish(tmp_path / "b", **{"\x1b[2Jfield\n": "\x1b]0;title\x07\n" * 1000}))
    with pytest.raises(UserError, match="b is no seed of") as caught:
        combine([first, evil], tmp_path / "out", "")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_report_of_several_runs_never_takes_the_place_of_a_run_s_own(tmp_path):
    runs = [("", finish(tmp_path / "a")), ("", finish(tmp_path / "b", seed=1))]
    before = outcome(tmp_path / "a" / "report")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "report")
    for folder in (tmp_path / "a" / "report", tmp_path / "link"):
        with pytest.raises(UserError, match="is the report of one of the runs: choose another --out"):
            combine(runs, folder, "python -m x")
    assert outcome(tmp_path / "a" / "report") == before
    combine(runs[:1], tmp_path / "a" / "report", "python -m x")


def test_the_command(tmp_path):
    workdirs = [
        finish(tmp_path / name, frechet, seed=seed) for seed, (name, frechet) in enumerate({"a": 1.0, "b": 3.0}.items())
    ]

    def command(*flags):
        return run(["evaluate", "report", *flags])

    both = [f"--workdir={workdir}" for workdir in workdirs]
    result = command(*both, f"--out={tmp_path / 'o'}")
    assert (result.stdout, result.stderr) == (f"report: {tmp_path / 'o' / 'index.html'}\n", "")
    _, numbers = outcome(tmp_path / "o")
    assert numbers["rows"][2]["frechet"] == pytest.approx(2)
    assert numbers["meta"]["command"].startswith(f"python -m dollar_jax.evaluate report {both[0]}")
    refused = command(*both)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --out is missing: give the folder for the report of several runs\n",
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
