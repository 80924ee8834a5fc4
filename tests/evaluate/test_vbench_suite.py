"""VBench's prompts as files: their names, what is in them, and a job that is broken off."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_pipeline

from dollar_jax import pipeline
from dollar_jax.checkpoint import save_params
from dollar_jax.data.video import read_video
from dollar_jax.errors import UserError
from dollar_jax.evaluate import vbench_suite
from dollar_jax.evaluate.vbench_suite import claim, manifest_path, suite, write_suite
from dollar_jax.videos import Sample, draw

SHORT = ["a pear", "in a still frame, a cat", "a dog"]
STRANGE = [
    *("../x", "/etc/passwd", "a/../../x", "..", ".", ".hidden", "-rf", "--out=x"),
    *("a\0b", "a\nb", "a\x1b[2Jb", "a\u202eb", "a\u2028b", "x" * 10_000, "\u00e9" * 120),
]
LONG = ["A single, ripe pear.", "A frame in which a cat sits.", "A dog, running."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy_pipeline.write(tmp_path_factory.mktemp("student"), LONG)


@pytest.fixture(scope="module")
def model(checkpoint):
    return pipeline.load(checkpoint)


def frames(folder, samples):
    return np.stack([read_video(folder / f"{sample.name}.mp4")[0] for sample in samples])


def test_names_are_vbenchs():
    samples = suite(LONG, SHORT, [SHORT[1]])
    assert [sample.name for sample in samples[:6]] == [*(f"a pear-{i}" for i in range(5)), "in a still frame, a cat-0"]
    assert samples[29] == Sample("in a still frame, a cat-24", LONG[1], 1, 24)
    assert [sample.name for sample in samples[30:]] == [f"a dog-{i}" for i in range(5)]
    assert suite(SHORT, SHORT)[7] == Sample("in a still frame, a cat-2", SHORT[1], 1, 2)


def test_a_prompt_that_vbench_lists_twice_is_sampled_once():
    samples = suite([*LONG, "Another pear."], [*SHORT, "a pear"])
    assert samples == suite(LONG, SHORT)


@pytest.mark.parametrize(
    ("prompts", "short", "flickering", "words"),
    [
        (LONG, SHORT[:2], [], "3 prompts but 2 short ones"),
        (["one"], ["and/or"], [], "short prompt 1 cannot name a file"),
        (["one", "two"], ["one", "é" * 120], [], "short prompt 2 cannot name a file"),
        (LONG, SHORT, ["a dog", "a cat"], "'a cat', which is not a short prompt"),
        *((["one"], [name], [], "short prompt 1 cannot name a file") for name in STRANGE),
        (LONG, SHORT, ["x" * 10_000 + "\x1b"], r"'x+\.\.\.x+\\x1b', which is not a short prompt"),
    ],
)
def test_what_cannot_be_sampled_is_refused(prompts, short, flickering, words):
    with pytest.raises(UserError, match=words) as caught:
        suite(prompts, short, flickering)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_the_longest_name_can_be_written(checkpoint, model, tmp_path):
    name = "x" * vbench_suite.NAME_BYTES
    sample = suite([name], [name], [name])[-1]
    assert write_suite(checkpoint, model, [sample], tmp_path / "out", "float32", 0) == 1
    assert (tmp_path / f"out/{name}-24.mp4").exists()


def test_a_suite_holds_videos_only_and_the_manifest_says_what_made_them(checkpoint, model, tmp_path):
    samples, out = suite(LONG, SHORT)[3:12], tmp_path / "out"
    assert write_suite(checkpoint, model, samples, out, "float32", 7, batch_size=4) == 9
    assert {path.name for path in out.iterdir()} == {f"{sample.name}.mp4" for sample in samples}
    manifest = json.loads(manifest_path(out).read_text())
    assert {"seed": 7, "times": [499, 999], "guidance": 0.0, "tiled": False}.items() <= manifest.items()
    assert manifest["videos"]["a pear-4.mp4"] == {"prompt": LONG[0], "noise": [0, 4]}
    assert manifest["videos"].keys() == {f"{sample.name}.mp4" for sample in samples}

    wanted = np.stack([one for _, _, one in draw(model, samples, 7)])
    difference = frames(out, samples) - wanted.astype(float)
    assert np.abs(difference).mean() < 6  # of 255: H.264 halves the colours' resolution
    assert np.abs(wanted - wanted[::-1].astype(float)).mean() > 20


def test_a_job_broken_off_goes_on(checkpoint, model, tmp_path, monkeypatch):
    samples, out, whole = suite(LONG, SHORT), tmp_path / "out", tmp_path / "whole"
    write_suite(checkpoint, model, samples, whole, "float32", 7, batch_size=4)
    written = []

    def killed(path, *rest):
        if len(written) == 6:
            (out / f".{path.name}.4711").write_text("half of it")  # what a kill leaves
            raise KeyboardInterrupt
        written.append(path)
        write_video(path, *rest)

    write_video = vbench_suite.write_video
    monkeypatch.setattr(vbench_suite, "write_video", killed)
    with pytest.raises(KeyboardInterrupt):
        write_suite(checkpoint, model, samples, out, "float32", 7, batch_size=4)
    monkeypatch.undo()

    before = {path: path.stat().st_mtime_ns for path in written}
    assert write_suite(checkpoint, model, samples, out, "float32", 7, batch_size=4) == 9
    assert before == {path: path.stat().st_mtime_ns for path in written}
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert np.abs(frames(out, samples) - frames(whole, samples).astype(float)).max() <= 2
    assert manifest_path(out).read_text() == manifest_path(whole).read_text()
    assert write_suite(checkpoint, model, samples, out, "float32", 7) == 0


def test_a_list_may_grow(checkpoint, model, tmp_path):
    out = tmp_path / "out"
    write_suite(checkpoint, model, suite(LONG[:1], SHORT[:1]), out, "float32", 7)
    first = manifest_path(out).read_text()
    assert write_suite(checkpoint, model, suite(LONG[:2], SHORT[:2]), out, "float32", 7) == 5
    assert write_suite(checkpoint, model, suite(LONG[:1], SHORT[:1]), out, "float32", 7) == 0
    manifest = json.loads(manifest_path(out).read_text())
    assert len(manifest["videos"]) == 10
    assert manifest["videos"].items() >= json.loads(first)["videos"].items()


def test_the_manifest_has_the_guidance_of_both_experts(checkpoint, model, tmp_path):
    two = {"guidance": 3.0, "low_guidance": {"guidance": 2.0, "below": 875.0}}
    model, out = toy_pipeline.Pipeline(model.card | two, model.networks, model.tokenizer), tmp_path / "out"
    samples = suite(LONG, SHORT)[:2]
    assert write_suite(checkpoint, model, samples, out, "float32", 7) == 2
    assert json.loads(manifest_path(out).read_text())["guidance"] == [3.0, 2.0, 875.0]
    assert write_suite(checkpoint, model, samples, out, "float32", 7) == 0


def test_another_job_in_the_same_folder_is_refused(checkpoint, model, tmp_path):
    samples, out = suite(LONG, SHORT)[:2], tmp_path / "out"
    write_suite(checkpoint, model, samples, out, "float32", 7)
    before = manifest_path(out).read_text()
    trained = toy_pipeline.write(tmp_path / "trained", LONG)
    shutil.rmtree(trained / "transformer")
    _, params = model.networks["transformer"]
    other_caption = samples[0]._replace(caption=LONG[2])
    save_params(trained / "transformer", jax.tree.map(lambda x: x + 1e-3, params))
    others = {
        "seed is 7 there, 8 here": (checkpoint, samples, "float32", 8),
        r"times is \[499, 999\] there, \[999\] here": (checkpoint, samples, "float32", 7, 1),
        "guidance is 0.0 there, 2.0 here": (checkpoint, samples, "float32", 7, None, 2.0),
        "dtype is 'float32' there, 'bfloat16' here": (checkpoint, samples, "bfloat16", 7),
        "transformer is": (trained, samples, "float32", 7),
        "a pear-0.mp4 is .*ripe pear.* there, .*A dog": (checkpoint, [other_caption], "float32", 7),
        "a pear-1.mp4 is .*1.* there, .*2.* here": (checkpoint, [samples[1]._replace(video=2)], "float32", 7),
    }
    for words, (folder, its_samples, *rest) in others.items():
        with pytest.raises(UserError, match=words):
            write_suite(folder, model, its_samples, out, *rest)
    assert manifest_path(out).read_text() == before

    (out / "a dog-0.mp4").write_bytes(b"of somebody else")
    with pytest.raises(UserError, match=r"a dog-0.mp4 exists, but not in"):
        write_suite(checkpoint, model, suite(LONG, SHORT), out, "float32", 7)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b"{}", "has no videos"),
        (b'{"videos": []}', "has no videos"),
        (b'{"videos": {"a pear-0.mp4": "\\u001b[2J"}}', r"a pear-0.mp4 is '\\x1b\[2J' there"),
        (b'{"videos": {}, "seed": "' + b"x" * 10_000 + b'"}', r"seed is 'x+\.\.\.x+' there, 7 here"),
        (None, r"out\.manifest\.json"),  # a folder
    ],
)
def test_a_damaged_manifest_is_one_line(tmp_path, content, words):
    samples, out = suite(LONG, SHORT)[:2], tmp_path / "out"
    path = manifest_path(out)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        claim(out, samples, {"seed": 7})
    assert "take another --out" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert content is None or path.read_bytes() == content


def test_the_folder_may_be_the_present_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert manifest_path(Path(".")) == tmp_path / "out.manifest.json"
    claim(Path("."), suite(LONG, SHORT)[:1], {"seed": 7})
    assert (tmp_path / "out.manifest.json").exists()


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_written(checkpoint, model, tmp_path):
    (tmp_path / "out").write_text("of the user")
    with pytest.raises(UserError, match="out is a file: take another --out"):
        write_suite(checkpoint, model, suite(LONG, SHORT)[:1], tmp_path / "out", "float32", 7)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
