import base64
import io
import json
import re

import numpy as np
import pytest
from page import Page
from PIL import Image

from configs import shapes
from dollar_jax.data.video import read_video
from dollar_jax.evaluate import report, report_page
from dollar_jax.evaluate.measure import Metrics
from dollar_jax.evaluate.report import write_report
from dollar_jax.evaluate.report_clips import Look, make_clip
from dollar_jax.evaluate.report_rows import REWARD, SECONDS, show

COLUMNS = [*Metrics(shapes.get_config().report.metrics.to_dict()).columns, REWARD, SECONDS]
CAPTIONS = ["a red ring", "<b>a blue cross</b> & more"]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def run(folder, **changes):
    """Writes a report of a teacher, its data and two students, with `changes`, and returns the page and the numbers."""
    rows = [
        {"model": "data", "videos": 300, "frechet": 1.5, "hf": 1.0},
        {"model": "teacher", "objectives": [], "steps": 50, "calls": 100, "videos": 300, "alignment": 1.0}
        | {"frechet": 2.5, "hf": 1.24, "diffusion_seconds_per_video": 0.1},
        {"model": "four", "objectives": ["variational_score", "consistency"], "steps": 4, "calls": 4, "videos": 300}
        | {"alignment": 0.993, "frechet": 2.0, "hf": 1.43, "diffusion_seconds_per_video": 0.01},
        {"model": "one", "objectives": ["my_fork:loss"], "steps": 1, "calls": 1, "videos": 300, "alignment": None}
        | {"frechet": float("nan"), "hf": 3.0, "diffusion_seconds_per_video": 0.001},
    ]
    arguments = {
        "rows": rows,
        "columns": COLUMNS,
        "clips": {model: noise(2, 9, 32, 32, 3, seed=i) for i, model in enumerate(["teacher", "four", "one"])},
        "curves": {"teacher": [{"step": 19, "time": 1.0, "loss": 0.9}, {"step": 39, "time": 2.0, "loss": None}]},
        "meta": {"title": "A run", "student": "four", "captions": CAPTIONS, "fps": 8, "command": "python -m x"}
        | {"machine": "two CPU cores", "configs": {"four": "seed: 0"}},
    }
    write_report(folder, **arguments | changes)
    return (folder / "index.html").read_text("utf-8"), json.loads((folder / "report.json").read_text("utf-8"))


def test_numbers_follow_the_contract(tmp_path):
    _, numbers = run(tmp_path)
    rows = {row["model"]: row for row in numbers["rows"]}
    assert list(rows) == ["data", "teacher", "four", "one"]
    assert rows["four"]["objectives"] == ["variational_score", "consistency"]
    assert (rows["four"]["steps"], rows["four"]["calls"], rows["four"]["videos"]) == (4, 4, 300)
    assert rows["four"]["diffusion_seconds_per_video"] == 0.01
    assert rows["one"]["frechet"] is None
    assert numbers["meta"]["machine"] == "two CPU cores"


def test_the_page_needs_nothing_from_outside(tmp_path):
    text, _ = run(tmp_path)
    page = Page(text)
    assert not {"script", "img", "iframe", "video"} & {tag for tag, _ in page.tags}
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links == ["data:,"]
    assert set(re.findall(r"url\((.{5})", text)) == {"data:"}
    assert "http" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "index.html", "report.json", "report.md"]


def test_headline_compares_student_and_teacher(tmp_path):
    text = Page(run(tmp_path)[0]).text
    assert "4 steps in place of 50" in text
    assert "10.0 times faster ; counting calls alone predicts 25 times" in text
    assert "Alignment, higher is better 99.3 % teacher 100.0 %" in text


def test_the_table_has_all_rows_and_dashes_for_the_unknown(tmp_path):
    text = Page(run(tmp_path)[0]).text
    assert "four VSD + CD 4 4 x 10.0 x 25 99.3 % 2.00 1.43 10 ms 300" in text
    assert "one my_fork:loss 1 1 x 100.0 x 100 - - 3.00 1 ms 300" in text
    assert "data - - - - - - 1.50 1.00 - 300" in text


def test_metrics_nobody_measured_are_left_out(tmp_path):
    text = Page(run(tmp_path)[0]).text
    assert [column.label for column in COLUMNS if column.meaning in text] == [
        *("Alignment", "Fréchet distance", "Detail", "Time a video")
    ]


def test_clips_are_on_the_page_without_loss_and_have_names(tmp_path):
    text, _ = run(tmp_path)
    pictures = dict(re.findall(r"\.(m\dc\d) \{ --s: url\(data:image/png;base64,([^)]+)\)", text))
    assert len(pictures) == 6
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures["m1c0"]))))
    assert (pixels == np.concatenate(list(noise(2, 9, 32, 32, 3, seed=1)[0]), axis=1)).all()
    names = {a["class"]: a["aria-label"] for _, a in Page(text).tags if a.get("class", "").startswith("clip ")}
    assert names["clip m1c0"] == "four: a red ring"
    assert names["clip m0c1"] == f"teacher: {CAPTIONS[1]}"


def test_captions_are_escaped(tmp_path):
    text, _ = run(tmp_path)
    assert "<h3>&lt;b&gt;a blue cross&lt;/b&gt; &amp; more</h3>" in text


def test_large_clips_are_films_at_their_own_speed_and_grids_of_the_paper_s_frames(tmp_path):
    steps = np.arange(128, dtype=np.uint8)[None, :, None, None, None]  # each frame is grey, as bright as its number
    videos = np.broadcast_to(steps, (2, 128, 96, 160, 3))
    text, _ = run(tmp_path, clips={"teacher": videos, "four": videos})
    page = Page(text)
    (film, *others) = [a["src"] for tag, a in page.tags if tag == "video"]
    assert len(others) == 7  # two of each model in the rows, and two of each in the duel
    path = tmp_path / "film.mp4"
    path.write_bytes(base64.b64decode(film.removeprefix("data:video/mp4;base64,")))
    frames, fps = read_video(path)
    assert (frames.shape, fps) == ((128, 96, 160, 3), 8)
    grids = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(grids) == 4
    grid = np.asarray(Image.open(io.BytesIO(base64.b64decode(grids[0].removeprefix("data:image/jpeg;base64,")))))
    assert grid.shape == (96, 5 * 160, 3)
    assert grid[48, 80::160, 0].tolist() == pytest.approx([0, 30, 60, 90, 120], abs=2)
    assert "Frames 0, 30, 60, 90, 120" in page.text


def test_shorter_and_higher_videos_fit_too(tmp_path):
    look = Look(49, 481, 719, 8)
    assert look.grid == [0, 12, 24, 36, 48]
    clip = make_clip(np.zeros((*look[:3], 3), np.uint8), 8)
    path = tmp_path / "film.mp4"
    path.write_bytes(clip.moving)
    assert read_video(path)[0].shape == (49, 192, 286, 3)
    assert Image.open(io.BytesIO(clip.grid)).size == (5 * 287, 192)


def test_the_text_has_the_numbers(tmp_path):
    run(tmp_path)
    lines = (tmp_path / "report.md").read_text("utf-8").splitlines()
    assert lines[0] == "# A run"
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[2:8]}
    assert cells["four"] == [
        "VSD + CD",
        "4",
        "4",
        "\N{MULTIPLICATION SIGN} 10.0 (25)",
        "99.3 %",
        "2.00",
        "1.43",
        "10 ms",
        "300",
    ]
    assert cells["data"][3:] == ["", "\N{EN DASH}", "1.50", "1.00", "\N{EN DASH}", "300"]
    assert "    python -m x" in lines


def test_a_curve_goes_from_its_largest_to_its_smallest_value(tmp_path):
    lines = [{"step": 10 * i, "time": 0.0, "loss": 3.0 - i, "norm/student_gradient": 10.0**i} for i in range(3)]
    text, _ = run(tmp_path, curves={"student": lines, "empty": []})
    assert 'class="raw" d="M0 0L50 50L100 100"' in text
    assert 'class="raw" d="M0 100L50 50L100 0"' in text  # on a log scale
    assert "student, loss: from 3 to 1 in 20 steps" in text


@pytest.mark.parametrize(
    ("metric", "dots", "ideal"),
    [
        ("Detail", ["4.0", "15.04", "23.78", "96.0"], {"4.0"}),
        ("Fréchet distance", ["4.0", "96.0", "50.0"], {"4.0"}),  # data, not 0, is what can be reached
        ("Time a video", ["96.0", "50.0", "4.0"], set()),  # on a log scale
    ],
)
def test_dots_lie_between_the_worst_and_the_best(tmp_path, metric, dots, ideal):
    text, _ = run(tmp_path)
    card = text[text.index(f"<h3>{metric}") :].split("</table>")[0]
    assert re.findall(r'cx="([\d.]+)%"', card) == dots
    assert set(re.findall(r'class="ideal" x1="([\d.]+)%"', card)) == ideal


def test_a_vendi_score_that_data_lack_is_not_their_ideal(tmp_path):
    """Of one clip a caption there is none: no dot, no dashed line, a dash in the tables, null in report.json."""
    rows = [
        {"model": "data", "videos": 60, "vendi": float("nan")},
        {"model": "teacher", "objectives": [], "steps": 50, "calls": 100, "videos": 300, "vendi": 1.2},
        {"model": "four", "objectives": [], "steps": 4, "calls": 4, "videos": 300, "vendi": 1.1},
    ]
    clips = {model: noise(2, 9, 32, 32, 3) for model in ("teacher", "four")}
    text, numbers = run(tmp_path, rows=rows, clips=clips)
    card = text[text.index("<h3>Vendi score") :].split("</table>")[0]
    assert re.findall(r'<th scope="row">(\w+)', card) == ["teacher", "four"]
    assert "ideal" not in card
    assert "data - - - - - - 60" in Page(text).text
    assert [row["vendi"] for row in numbers["rows"]] == [None, 1.2, 1.1]
    assert "| data |  |  |  |  | \N{EN DASH} | 60 |" in (tmp_path / "report.md").read_text("utf-8")


def test_videos_of_one_prompt_have_a_section_of_their_own(tmp_path):
    clips = {model: noise(3, 9, 32, 32, 3, seed=i) for i, model in enumerate(["teacher", "four", "one"])}
    meta = {"title": "A run", "student": "four", "captions": [*CAPTIONS, CAPTIONS[0]], "variety": [0, 2], "fps": 8}
    meta |= {"command": "python -m x", "machine": "two CPU cores", "configs": {}}
    page = Page(run(tmp_path, clips=clips, meta=meta)[0])
    assert "2 videos of one prompt a red ring: the videos should differ" in page.text
    seen = [a["class"] for tag, a in page.tags if tag == "div" and a.get("class", "").startswith("clip ")]
    duel, rows, variety = seen[:4], seen[4:10], seen[10:]
    assert set(duel) == {f"clip m{model}c{number}" for model in (0, 1) for number in (0, 1)}
    assert rows == [f"clip m{model}c{number}" for number in (0, 1) for model in (0, 1, 2)]
    assert variety == [f"clip m{model}c{number}" for model in (0, 1, 2) for number in (0, 2)]


def test_students_in_training_go_through_the_plane_of_reward_and_distance(tmp_path):
    """Means of two seeds at the steps of both, between data's reward and the ends."""

    def log(*values):
        return [{"step": at, "time": 0.0, "held_out/frechet": f, "held_out/reward": r} for at, f, r in values]

    seeds = [
        log((-1, 2.0, 0.0), (9, 4.0, 1.0)),
        [*log((-1, 2.0, 0.2), (9, 6.0, 1.4), (19, 9.0, 9.0)), {"step": 9, "loss": 1.0}],
    ]
    rows = [{"model": "data", "videos": 60, "reward": 0.5}]
    plane = report_page._plane([("", {"lrm": lines, "vsd": log((-1, 1.0, 1.0))}) for lines in seeds], [""], rows)
    (line,) = plane["lines"]  # one measurement is no path
    assert line == {"name": "lrm", "path": "M4 96L96 4", "start": "M4 96", "end": "M96 4"}
    assert (plane["low"], plane["high"]) == (pytest.approx([2, 0.1]), pytest.approx([5, 1.2]))
    assert plane["data_y"] == pytest.approx(96 - 92 * 0.4 / 1.1)
    text, _ = run(tmp_path, curves={"lrm": seeds[0], "no reward": [{"step": 1, "time": 0.0, "held_out/frechet": 2.0}]})
    assert "Reward against distance from data" in text
    assert '<path d="M4 96L96 4"/>' in text
    assert "Reward against" not in run(tmp_path)[0]


def test_curves_are_smoothed(tmp_path):
    lines = [{"step": i, "time": 0.0, "loss": 1.0 + i % 2} for i in range(200)]
    text, _ = run(tmp_path, curves={"student": lines})
    raw, smooth = (
        [float(point.split()[1]) for point in re.search(f'class="{kind}[^"]*" d="M([^"]+)', text)[1].split("L")]
        for kind in ("raw", "smooth")
    )
    assert set(raw) == {0, 100}
    assert 40 < min(smooth) < max(smooth) < 60


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.9934, "%", "99.3 %"),
        (0.0471, "s", "47.1 ms"),
        (2.0, "s", "2 s"),
        (25.93, "dB", "25.9 dB"),
        (1.434, "", "1.43"),
        (23.71, "", "23.7"),
        (1.434, "px", "1.43 px"),
        (None, "", "\N{EN DASH}"),
        (float("inf"), "dB", "\N{EN DASH}"),
    ],
)
def test_numbers_are_shown_as_people_read_them(value, unit, shown):
    assert show(value, unit) == shown


def test_mistakes_leave_the_old_report(tmp_path):
    old, _ = run(tmp_path)
    clips = {model: noise(2, 9, 32, 32, 3) for model in ("teacher", "four")}
    with pytest.raises(ValueError, match="stranger"):
        run(tmp_path, clips=clips | {"stranger": clips["four"]})
    with pytest.raises(ValueError, match="four"):
        run(tmp_path, clips={"teacher": clips["teacher"]})
    with pytest.raises(ValueError, match="2 captions"):
        run(tmp_path, clips=clips | {"four": clips["four"][:1]})
    assert (tmp_path / "index.html").read_text("utf-8") == old


@pytest.mark.parametrize("last", ["index.html", "report.md", "report.json"])
def test_report_json_is_there_only_when_all_else_is(tmp_path, monkeypatch, last):
    """A run without it makes its report again: written first, a kill just behind it would leave no page for ever."""

    def killed(path, content):
        if path.name == last:
            raise KeyboardInterrupt
        write_atomically(path, content)

    write_atomically = report.write_atomically
    monkeypatch.setattr(report, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_the_text_is_lines_of_text_whatever_names_say(tmp_path):
    strange = "four\n\x1b[2J\x07<script>|"
    clips = {name: noise(2, 9, 32, 32, 3) for name in ("teacher", strange)}
    rows = [
        {"model": "teacher", "objectives": [], "steps": 50, "calls": 100, "videos": 1},
        {"model": strange, "objectives": [strange], "steps": 4, "calls": 4, "videos": 1},
    ]
    meta = {"title": strange, "student": strange, "captions": CAPTIONS, "fps": 8, "command": strange}
    meta |= {"machine": strange, "configs": {strange: strange}}
    page, _ = run(tmp_path, rows=rows, clips=clips, curves={}, meta=meta)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert text.replace("\n", "").isprintable()
    assert "<script>" not in text.replace("    four  [2J <script>|", "")  # the command, as code
    assert len([line for line in text.splitlines() if line.startswith("| four  [2J &lt;script>/ |")]) == 1
    assert "<script>" not in page
    assert Page(page).all("div", role="img")
