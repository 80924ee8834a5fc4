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
            path.write_bytes(f"{model} {i}".encode())
        pairs.append(Pair(f"{i:05d}-0", f"<i>prompt</i> {i}", videos))
    study = Study(("student", "teacher"), pairs, 50, tmp_path / "answers.jsonl")
    create(study.answers)
    return study


@pytest.fixture
def client(study):
    return create_app(study).test_client()


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
            assert load(client, video["src"]) == (200, task.pair.videos[side].read_bytes())
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
