from urllib.parse import parse_qs, urlsplit

import pytest
from page import Page

from dollar_jax.evaluate.human_app import create_app
from dollar_jax.evaluate.human_study import QUESTIONS, Pair, Study, agenda, create, read_answers

CHOICES = {question.key: "left" for question in QUESTIONS}


@pytest.fixture
def study(tmp_path):
    pairs = []
    for i in range(3):
        videos = {model: tmp_path / f"{model}-{i}.mp4" for model in ("student", "teacher")}
        for model, path in videos.items():
            path.write_bytes(f"{model} {i}".encode() * (1 + 40 * (model == "student")))
        pairs.append(Pair(f"{i:05d}-0", f"<i>prompt</i> {i}", videos))
    study = Study(("student", "teacher"), pairs, 50, tmp_path / "answers.jsonl")
    create(study.answers)
    return study


@pytest.fixture
def client(study):
    return create_app(study, frozenset()).test_client()


def load(client, source, **options):
    """Status and content; a video's file stays open until the answer is closed."""
    with client.get(source, **options) as answer:
        return answer.status_code, answer.data


def test_the_way_in_asks_for_a_name(client):
    page = Page(client.get("/").text)
    assert page.all("input", name="rater", required=None)
    assert not page.all("video")
    assert not Page(client.get("/?rater=+").text).all("video")


def test_a_session_from_first_to_last_pair(client, study):
    for done, task in enumerate(agenda(study, "ann")):
        text = client.get("/?rater=Ann").text
        page = Page(text)
        assert page.all("progress", value=str(done), max="3")
        assert task.pair.prompt.replace("<i>", "&lt;i&gt;").replace("</i>", "&lt;/i&gt;") in text
        for side, video in zip((task.left, task.right), page.all("video"), strict=True):
            status, content = load(client, video["src"])
            assert status == 200
            assert content.startswith(task.pair.videos[side].read_bytes())
        assert [len(page.all("input", name=question.key)) for question in QUESTIONS] == [3, 3, 3, 3]
        answer = client.post("/", data=CHOICES | {"rater": "ann", "pair": task.pair.name})
        assert answer.status_code == 303
        assert parse_qs(urlsplit(answer.location).query) == {"rater": ["ann"]}
    assert "Thank you, ann" in client.get("/?rater=ann").text
    assert [answer["pair"] for answer in read_answers(study.answers)] == [t.pair.name for t in agenda(study, "ann")]


def test_the_page_does_not_tell_the_models(client):
    text = client.get("/?rater=ann").text
    assert "student" not in text
    assert "teacher" not in text


@pytest.mark.parametrize("wrong", [{}, {"motion": "both"}])
def test_an_open_question_is_refused_by_name_and_the_rest_kept(client, study, wrong):
    task = agenda(study, "ann")[0]
    choices = dict.fromkeys(("visual_quality", "preference"), "right") | wrong
    answer = client.post("/", data=choices | {"rater": "ann", "pair": task.pair.name})
    assert answer.status_code == 422
    assert "Still open: Text-video alignment, Motion." in answer.text
    checked = {a["name"]: a["value"] for a in Page(answer.text).all("input", checked=None)}
    assert checked == {"visual_quality": "right", "preference": "right"}
    assert not read_answers(study.answers)


def test_a_pair_that_nobody_asked_about_is_refused(client, study):
    assert client.post("/", data=CHOICES | {"rater": "ann", "pair": "00009-0"}).status_code == 404
    assert client.post("/", data=CHOICES | {"rater": "", "pair": "00000-0"}).status_code == 404
    assert client.get("/video?rater=ann&pair=00000-0&side=up").status_code == 404
    assert not read_answers(study.answers)


def test_browsers_may_ask_for_a_part_of_a_video(client):
    source = Page(client.get("/?rater=ann").text).all("video")[0]["src"]
    _, whole = load(client, source)
    assert load(client, source, headers={"Range": "bytes=2-4"}) == (206, whole[2:5])


def test_an_answer_that_cannot_be_saved_is_not_lost_silently(client, study):
    study.answers.unlink()
    study.answers.mkdir()
    (study.answers / "x").touch()
    task = agenda(study, "ann")[0]
    answer = client.post("/", data=CHOICES | {"rater": "ann", "pair": task.pair.name})
    assert answer.status_code == 500
    assert "Your answer was not saved" in answer.text


def test_nothing_but_the_pictures_tells_one_video_from_the_other(client, study):
    """Neither a header, nor the length, also of a part."""
    for task in agenda(study, "ann"):
        seen = []
        for side in ("left", "right"):
            source = f"/video?rater=ann&pair={task.pair.name}&side={side}"
            for headers in ({}, {"Range": "bytes=0-"}, {"Range": "bytes=5-"}):
                answer = client.get(source, headers=headers)
                seen.append((side, answer.status_code, len(answer.data), dict(answer.headers) | {"Date": ""}))
        left, right = ([rest for side, *rest in seen if side == wanted] for wanted in ("left", "right"))
        for one, other in zip(left, right, strict=True):
            for _, _, headers in (one, other):
                headers.pop("Content-Security-Policy", None)  # it has a number used once
                assert not headers.keys() & {"Last-Modified", "ETag", "Content-Disposition"}
                assert headers["Content-Type"] == "video/mp4"
            assert one == other


def test_what_fills_a_video_up_is_a_box_that_players_skip(client, study):
    for task in agenda(study, "ann"):
        for side, model in (("left", task.left), ("right", task.right)):
            _, content = load(client, f"/video?rater=ann&pair={task.pair.name}&side={side}")
            filling = content.removeprefix(task.pair.videos[model].read_bytes())
            assert filling[4:8] == b"free"
            assert int.from_bytes(filling[:4]) == len(filling) >= 8


@pytest.mark.parametrize(
    "name", ["x" * 81, "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 5, "ann\0", "a\x1b[31mnn", "a\u202enn"]
)
def test_a_name_that_is_too_long_or_no_text_is_refused_by_the_server(client, study, name):
    """Five of these ligatures are 90 letters."""
    page = client.get("/", query_string={"rater": name})
    assert page.status_code == 400
    assert "A name has at most 80 characters, and all of them are visible." in Page(page.text).text
    assert Page(page.text).all("input", name="rater", maxlength="80")
    pair = study.pairs[0].name
    assert client.post("/", data=CHOICES | {"rater": name, "pair": pair}).status_code == 404
    assert client.get("/video", query_string={"rater": name, "pair": pair, "side": "left"}).status_code == 404
    assert not read_answers(study.answers)


def test_a_name_is_text_on_the_page(client):
    text = client.get("/", query_string={"rater": "<script>\"'&"}).text
    assert "&lt;script&gt;&#34;&#39;&amp;" in text
    assert text.count("<script") == 1
    assert client.get("/", query_string={"rater": "x" * 80}).status_code == 200


def test_who_cannot_save_is_not_told_where_files_lie(client, study):
    study.answers.unlink()
    study.answers.mkdir()
    answer = client.post("/", data=CHOICES | {"rater": "ann", "pair": agenda(study, "ann")[0].pair.name})
    assert answer.status_code == 500
    assert str(study.answers.parent) not in answer.text


def test_files_that_vanish_meanwhile_are_a_line_in_the_log(client, study, caplog):
    task = agenda(study, "ann")[0]
    for path in task.pair.videos.values():
        path.unlink()
    answers = [client.get(f"/video?rater=ann&pair={task.pair.name}&side=left")]
    study.answers.unlink()
    answers.append(client.get("/?rater=ann"))
    for answer in answers:
        assert (answer.status_code, answer.text) == (
            500,
            "Files of this study cannot be read: tell whoever invited you.",
        )
    assert ["No such file" in record.message and record.exc_info is None for record in caplog.records] == [True, True]
