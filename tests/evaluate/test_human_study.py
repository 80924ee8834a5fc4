import json
import threading
from collections import Counter

import pytest

from dollar_jax.errors import UserError
from dollar_jax.evaluate import human_study
from dollar_jax.evaluate.human_study import (
    QUESTIONS,
    Pair,
    Study,
    agenda,
    create,
    find_pairs,
    identity,
    read_answers,
    record,
    remaining,
    skipped_lines,
)

CHOICES = {question.key: "left" for question in QUESTIONS}


def make_study(tmp_path, pairs=6, count=50, models=("student", "teacher")):
    made = [Pair(f"{i:05d}-0", f"prompt {i}", {model: tmp_path / model for model in models}) for i in range(pairs)]
    study = Study(models, made, count, tmp_path / "answers.jsonl")
    create(study.answers)
    return study


def fill(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"\0\0\0\x10ftypisom" + bytes(4))
    return folder


def test_pairs_are_the_videos_that_both_folders_have(tmp_path):
    first = fill(tmp_path / "a", "00000-0.mp4", "00000-1.mp4", "00002-0.mp4", "00002-0.npy", "notes.mp4")
    second = fill(tmp_path / "b", "00002-0.mp4", "00000-1.mp4", "00001-0.mp4")
    pairs = find_pairs({"a": first, "b": second}, ["zero", "one", "two"])
    assert [(pair.name, pair.prompt) for pair in pairs] == [("00000-1", "zero"), ("00002-0", "two")]
    assert pairs[1].videos == {"a": first / "00002-0.mp4", "b": second / "00002-0.mp4"}


def test_folders_that_do_not_fit_are_refused(tmp_path):
    first, second = fill(tmp_path / "a", "00003-0.mp4"), fill(tmp_path / "b", "00000-0.mp4")
    with pytest.raises(UserError, match="no video of the same name"):
        find_pairs({"a": first, "b": second}, ["zero"])
    with pytest.raises(UserError, match="prompt 3, but --prompts has 3, from 0"):
        find_pairs({"a": first, "c": first}, ["zero", "one", "two"])
    with pytest.raises(UserError, match="nothing has no videos named"):
        find_pairs({"a": first, "b": tmp_path / "nothing"}, ["zero"])


def test_sides_and_order_are_balanced_and_differ_among_raters(tmp_path):
    study = make_study(tmp_path, pairs=4000, count=4000)
    tasks = agenda(study, "ann")
    left = Counter(task.left for task in tasks)
    # A fair coin thrown 4000 times deviates by 32 from half; 126 is four of that.
    assert abs(left["student"] - 2000) < 126
    assert {(task.left, task.right) for task in tasks} == {("student", "teacher"), ("teacher", "student")}
    first_half = Counter(task.left for task in tasks[:2000])
    assert abs(first_half["student"] - 1000) < 90  # the order says nothing about the sides
    other = agenda(study, "bob")
    assert [task.pair for task in tasks[:20]] != [task.pair for task in other[:20]]
    sides = {task.pair.name: task.left for task in other}
    same = sum(sides[task.pair.name] == task.left for task in tasks)
    assert abs(same - 2000) < 126
    assert sorted(task.pair.name for task in tasks) == [pair.name for pair in study.pairs]


def test_a_rater_sees_as_many_pairs_as_asked_and_the_same_after_a_restart(tmp_path):
    study = make_study(tmp_path, pairs=40, count=7)
    tasks = agenda(study, "ann")
    assert len({task.pair.name for task in tasks}) == 7
    swapped = Study(("teacher", "student"), study.pairs, 7, study.answers)  # --videos in the other order
    assert agenda(swapped, "ann") == tasks


def test_an_answer_says_who_saw_what_where_and_is_not_asked_again(tmp_path):
    study = make_study(tmp_path)
    first, second, *_ = remaining(study, "ann")
    record(study, "ann", first, CHOICES | {"motion": "equal"}, time=7.0)
    (line,) = study.answers.read_text().splitlines()
    assert json.loads(line) == {
        "time": 7.0,
        "rater": "ann",
        "models": ["student", "teacher"],
        "pair": first.pair.name,
        "prompt": first.pair.prompt,
        "left": first.left,
        "right": first.right,
        "visual_quality": "left",
        "alignment": "left",
        "motion": "equal",
        "preference": "left",
    }
    assert remaining(study, "ann")[0] == second
    assert len(remaining(study, "ann")) == 5
    assert len(remaining(study, "bob")) == 6
    other = Study(("student", "baseline"), study.pairs, 50, study.answers)  # another comparison, the same file
    assert len(remaining(other, "ann")) == 6


def test_names_are_the_same_however_they_are_typed():
    assert identity("  Ann\tMARIE ") == identity("ann marie") == "ann marie"
    assert identity("Zoe\u0308") == identity("zo\u00eb")
    assert identity(" ") == ""


def test_what_a_crash_cut_short_swallows_nothing(tmp_path):
    study = make_study(tmp_path)
    first, second, *_ = agenda(study, "ann")
    record(study, "ann", first, CHOICES, 1.0)
    with study.answers.open("ab") as file:
        file.write(b'{"rater": "ann", "pa')
    record(study, "ann", second, CHOICES, 2.0)
    assert [answer["pair"] for answer in read_answers(study.answers)] == [first.pair.name, second.pair.name]


def test_an_answer_is_synced_before_it_counts_as_saved(tmp_path, monkeypatch):
    study, synced = make_study(tmp_path), []
    monkeypatch.setattr(human_study.os, "fsync", lambda number: synced.append(study.answers.read_bytes()))
    record(study, "ann", agenda(study, "ann")[0], CHOICES, 1.0)
    assert synced == [study.answers.read_bytes()]
    assert synced[0].endswith(b"}\n")


def test_many_raters_at_once(tmp_path):
    study = make_study(tmp_path, pairs=25)
    raters = [f"rater {i}" for i in range(8)]
    start = threading.Barrier(len(raters))

    def rate(rater):
        start.wait()
        for task in agenda(study, rater):
            record(study, rater, task, CHOICES, 0.0)

    threads = [threading.Thread(target=rate, args=(rater,)) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(study.answers.read_text().splitlines()) == 200
    assert all(not remaining(study, rater) for rater in raters)


JUNK = [
    b"{",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'"ann"',
    b"7",
    b"[" * 100_000,
    b'{"step": 1}',
]
WRONG = [
    {"rater": 7},
    {"rater": None},
    {"pair": ["00000-0"]},
    {"models": "st"},
    {"models": ["student"]},
    {"models": ["student", "student"]},
    {"models": ["student", 7]},
    {"models": [["student"], "teacher"]},
    {"models": ["student", "teacher", "other"]},
    {"models": ["student", "\x1b[31mteacher"], "right": "\x1b[31mteacher"},
    {"models": ["student", "\ud800"], "right": "\ud800"},
    {"left": "baseline"},
    {"left": "teacher"},
    {"right": {"a": 1}},
    {"motion": "up"},
    {"motion": 7},
    {"motion": ["left"]},
    {"preference": None},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_that_is_none_is_passed_over(tmp_path, wrong):
    good = {"rater": "ann", "pair": "0", "models": ["student", "teacher"], "left": "student", "right": "teacher"}
    good |= CHOICES
    lines = [good, good | wrong, *({k: v for k, v in good.items() if k != lacking} for lacking in good)]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    assert read_answers(path) == [good]
    assert skipped_lines(path) == list(range(2, len(lines) + 1))


def test_junk_stops_nobody(tmp_path):
    study = make_study(tmp_path)
    tasks = agenda(study, "ann")
    for i, junk in enumerate(JUNK):
        with study.answers.open("ab") as file:
            file.write(junk + b"\n" * (2 if i >= len(tasks) else i % 3))
        if i < len(tasks):
            record(study, "ann", tasks[i], CHOICES, 0.0)
    assert [answer["pair"] for answer in read_answers(study.answers)] == [task.pair.name for task in tasks]
    assert len(skipped_lines(study.answers)) == len(JUNK)
    assert not remaining(study, "ann")


def test_a_file_that_cannot_be_read_or_written_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="No such file"):
        read_answers(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"answers\.jsonl cannot be written"):
        create(path / "answers.jsonl")
