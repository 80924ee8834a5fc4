"""Stages `encode` and `distill` with networks of a handful of parameters: every way to tune for a reward."""

import dataclasses
import io
import json
import re
import shutil
import sys
from contextlib import redirect_stdout

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from browser import needs_browser, open_browser
from ml_collections import ConfigDict

from configs import shapes
from dollar_jax import checkpoint, diffusion, metrics, progress
from dollar_jax.config import named
from dollar_jax.data.shapes import CAPTIONS
from dollar_jax.data.text import write_word_tokenizer
from dollar_jax.errors import UserError
from dollar_jax.evaluate.report_runs import combine
from dollar_jax.models.network import Network
from dollar_jax.pipeline import load
from dollar_jax.sharding import make_mesh
from dollar_jax.stages import distill as distill_module
from dollar_jax.stages.distill import distill
from dollar_jax.stages.encode import encode
from dollar_jax.stages.report import report
from dollar_jax.types import Condition

NOTHING = {"variational_score": 0.0, "consistency": 0.0, "latent_reward": 0.0}
CD = NOTHING | {"consistency": 0.5}
HUB = {"repository": "some/model", "commit": "0a" * 20}
BORDER = "dollar_jax.rewards.shapes_world:BorderBrightness"


def transformer(**options) -> Network:
    return toy.TRANSFORMER


def autoencoder() -> Network:
    """Means of 4 x 4 pixels and nothing, as four channels."""

    def apply(params, x, method):
        if method == "encode":
            small = x.reshape(*x.shape[:2], x.shape[2] // 4, 4, x.shape[3] // 4, 4, 3).mean((3, 5)) * params["gain"]
            mean = jnp.concatenate([small, jnp.zeros_like(small[..., :1])], axis=-1)
            return mean, jnp.zeros_like(mean)
        return (x[..., :3] / params["gain"]).repeat(4, 2).repeat(4, 3)

    return Network(lambda key: {"gain": jnp.float32(2.0)}, apply)


def text_encoder() -> Network:
    return Network(
        lambda key: {"embedding": jax.random.normal(key, (64, 2))},
        lambda params, tokens, mask: Condition(params["embedding"][tokens], mask),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher and the encoded data."""
    folder = tmp_path_factory.mktemp("tuning")
    parts = {}
    for name, build in {"transformer": transformer, "vae": autoencoder, "text_encoder": text_encoder}.items():
        checkpoint.save_params(folder / "teacher" / name, build().init(jax.random.key(0)))
        architecture = f"test_tuning:{build.__name__}"
        parts[name] = {"architecture": architecture, "config": {}, "path": name, "item": ""}
    write_word_tokenizer(folder / "teacher" / "tokenizer", CAPTIONS)
    card = {
        "role": "teacher",
        **parts,
        "prediction_type": "conjugate",
        "schedule": {"kind": "ddpm"},
        "times": diffusion.ddpm_schedule().spaced(50),
        "sampler": "ddim",
        "guidance": 0.0,
        "negative_prompt": "",
        "tokenizer": {"path": "tokenizer", "length": 6},
        "video": {"frames": 2, "height": 16, "width": 16, "fps": 8, "independent_chunk": 0},
        "latent_shape": [2, 4, 4, 4],
        "hub": HUB,
    }
    checkpoint.write_card(folder / "teacher", card | {"vae": parts["vae"] | {"scaling_factor": 1.0}})
    tune(folder, {})
    return folder


MEASURED = {"frechet": {}, "detail": {}, "vendi": {}}


def tune(folder, students, name=BORDER, stages=(encode, distill), workdir=None, updates=1, measured=MEASURED, **reward):
    """Runs the stages with these students, each {objectives and other fields of generator, reward}."""
    config = shapes.get_config()
    config.teacher.path = str(folder / "teacher")
    config.data.clips = 24
    config.video.update({"frames": 2, "height": 16, "width": 16})
    config.reward.update({"name": name, "batch_size": 4, **reward})
    config.held_out.videos_per_caption = 1
    config.report.update({"reference_clips": 8, "batch_size": 30})
    config.report.metrics = named(**measured)
    config.report.update({"videos_per_caption": 1, "fewer_steps": (), "clips": 2, "repeats": 1})
    config.report.teacher_samplers = (("ancestral", 3),)
    every = {"iterations": 4, "save_every": 2, "log_every": 2, "batch_size": 4, "show_every": 0, "keep": 9}
    config.generator.update(every)
    config.generator.guard.metric = ""
    config.fake_score.updates = updates
    students = {
        name: {"start_from": "", "reward": reward, "generator": generator}
        for name, (generator, reward) in students.items()
    }
    config.students = ConfigDict(students, convert_dict=True, sort_keys=False)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    workdir = workdir or folder
    with jax.set_mesh(mesh):
        for stage in stages:
            stage(config, workdir, mesh)
    return {name: metrics.read(workdir / name) for name in students}


def held_out(log):
    return [line for line in log if "held_out/reward" in line]


WAYS = {
    "joint": ({"objectives": NOTHING | {"variational_score": 1.0, "latent_reward": 1.0}}, {}),
    "separate": ({"objectives": CD | {"latent_reward": 1.0}}, {"pretrain": 2, "step": "separate", "replay": 8}),
    "fixed": ({"objectives": CD | {"latent_reward": 1.0}}, {"pretrain": 2, "concurrent": False}),
    "ddpo": (
        {
            "objectives": NOTHING | {"policy_gradient": 1.0, "start_divergence": 1e-3},
            "optimizer": {"learning_rate": 0.01, "warmup": 0, "decay_from": 1.0},
        },
        {},
    ),
    "refl": ({"objectives": NOTHING | {"refl": 1.0}}, {}),
    "draft": ({"objectives": NOTHING | {"draft": {"weight": 1.0, "steps": 2}}}, {}),
}


@pytest.fixture(scope="module")
def logs(folder):
    """The log of a student of each way, which is in `folder`."""
    return tune(folder, WAYS, stages=(distill,))


def copied(folder, workdir, name):
    """A student of `folder` without its last checkpoint, in a workdir of its own."""
    (workdir / "encoded").symlink_to(folder / "encoded")
    shutil.copytree(folder / name, workdir / name)
    shutil.rmtree(workdir / name / "checkpoints/4")


def test_every_way_to_tune_for_a_reward(logs):
    for name, log in logs.items():
        ends = [-1, 1, 3, 5] if name in ("separate", "fixed") else [-1, 1, 3]
        assert [line["step"] for line in held_out(log)] == ends
        learnt = [line for line in log if "loss" in line or "loss/reward_model" in line]
        # Before the student's first update, and where nothing needs it, nothing of it is done.
        assert all(("loss/fake_score" in line) == (name == "joint") for line in learnt)
        assert ("held_out/reward_correlation" in log[-1]) == (name in ("joint", "separate", "fixed"))
        assert all(("held_out/reward_chain" in line) == (name == "ddpo") for line in held_out(log))
    for name in ("separate", "fixed"):
        first, last = logs[name][1], logs[name][-2]
        assert "loss/reward_model" in first
        assert "loss/latent_reward" not in first
        assert {"loss/latent_reward", "loss/consistency"} <= last.keys()
        assert ("loss/reward_model" in last) == (name == "separate")
    assert logs["separate"][-2]["loss"] == pytest.approx(
        0.5 * logs["separate"][-2]["loss/consistency"] + logs["separate"][-2]["loss/latent_reward"], rel=1e-4
    )
    assert "log_probability" in logs["ddpo"][-2]
    for name in ("refl", "draft"):
        assert 0 < logs[name][-2]["pixel_reward"] < 1


@pytest.mark.parametrize("objective", ["draft", "refl"])
def test_a_reward_with_a_gradient_rises_on_held_out_prompts(folder, objective, tmp_path):
    optimizer = {"learning_rate": 0.03, "warmup": 1, "decay_from": 1.0}
    generator = {"objectives": NOTHING | {objective: 1.0}, "iterations": 20, "save_every": 20}
    generator |= {"ema": 0.5, "optimizer": optimizer, "rollout": "simulate"}
    (tmp_path / "encoded").symlink_to(folder / "encoded")
    log = tune(folder, {"student": (generator, {})}, stages=(distill,), workdir=tmp_path)["student"]
    first, last = held_out(log)
    assert last["held_out/reward"] > first["held_out/reward"] + 0.05


def test_a_student_without_reward_is_looked_at_too(folder, tmp_path, capsys, monkeypatch):
    """What its videos are like is in the log, and in words what is wrong with them: the toy teacher makes noise."""
    generator = {"objectives": NOTHING | {"variational_score": 1.0}, "iterations": 2}
    (tmp_path / "encoded").symlink_to(folder / "encoded")
    monkeypatch.setattr(progress, "QUIET", 0)  # of large videos a measurement takes many minutes
    logs = tune(folder, {"student": (generator, {})}, stages=(distill,), workdir=tmp_path)
    measured = [line for line in logs["student"] if "collapse/variance" in line]
    assert [line["step"] for line in measured] == [-1, 1]
    assert all("held_out/vendi" in line and "held_out/reward" not in line for line in measured)
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"held out: 1 of \d+ videos, \d+ min left", said[0])
    alarms = [line for line in said if "ALARM" in line]
    sharpness = measured[1]["collapse/sharpness"]
    assert alarms[1] == f"student 2/2  ALARM: its frames are noise ({sharpness:.3g} times the sharpness of data)"
    logs = tune(
        folder, {"free": (generator | {"iterations": 0, "guard": {"metric": "-frechet"}}, {})}, workdir=tmp_path
    )
    assert not any("held_out/score" in line for line in logs["free"])  # there is no reward to go too far for


def test_a_guarded_student_is_its_best_checkpoint(folder, tmp_path):
    """A student whose rate is far too high leaves the bounds at once: it ends early, and is what it was."""
    guard = {"metric": "-frechet", "tolerance": 0.05, "patience": 2}
    generator = {"objectives": NOTHING | {"latent_reward": 1.0}, "iterations": 20, "guard": guard}
    generator["optimizer"] = {"learning_rate": 1.0, "warmup": 0, "decay_from": 1.0}
    (tmp_path / "encoded").symlink_to(folder / "encoded")
    (log,) = tune(folder, {"student": (generator, {})}, stages=(distill,), workdir=tmp_path).values()
    scores = {line["step"] + 1: line["held_out/score"] for line in held_out(log)}
    best = max(scores, key=lambda step: -np.inf if scores[step] is None else scores[step])
    assert held_out(log)[-1]["step"] + 1 == best + 4 < 20  # patience is two checkpoints
    card = checkpoint.read_card(tmp_path / "student")
    assert card["transformer"]["path"] == f"checkpoints/{best}"
    assert card["hub"] == HUB  # its teacher's
    _, params = load(tmp_path / "student", parts=("transformer",)).networks["transformer"]
    _, teacher = load(folder / "teacher", parts=("transformer",)).networks["transformer"]
    assert best == 0
    np.testing.assert_array_equal(params["mix"], teacher["mix"])

    (again,) = tune(folder, {"student": (generator, {})}, stages=(distill,), workdir=tmp_path).values()
    assert again == log  # it knows that it had ended


def test_a_student_goes_on_with_the_commit_of_its_teacher(folder, tmp_path):
    card = checkpoint.read_card(folder / "teacher")
    checkpoint.write_card(tmp_path / "student", card | {"hub": HUB | {"commit": "0b" * 20}})
    words = f"student was begun with some/model at commit {'0b' * 20}, but .*teacher was converted from .*{'0a' * 20}"
    with pytest.raises(UserError, match=words):
        tune(folder, {"student": ({"objectives": CD}, {})}, stages=(distill,), workdir=tmp_path)


DRIFT = """
from itertools import count

from dollar_jax.evaluate.measure import Column


class Drift:
    columns = Column("drift", "Drift", "More at every call.", better="lower", unit="px"),

    def __init__(self, by):
        self.by = by

    def fit(self, data):
        assert len(data.captions) == 8
        values = count(0.0, self.by)
        return lambda clips: next(values)
"""


@pytest.fixture(scope="module")
def drift(folder, tmp_path_factory):
    """Two runs of a student that is guarded by a metric from outside, 1 and 3 more at every call, what they printed and
    the report of both."""
    out, said = tmp_path_factory.mktemp("drift"), io.StringIO()
    (out / "drifting.py").write_text(DRIFT)
    guard = {"metric": "-drift", "tolerance": 0.5, "patience": 9}
    generator = {"objectives": NOTHING | {"latent_reward": 1.0}, "guard": guard}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.syspath_prepend(out)
        for by in (1.0, 3.0):
            workdir = out / f"by_{by:.0f}"
            workdir.mkdir()
            (workdir / "encoded").symlink_to(folder / "encoded")
            measured = {"drifting:Drift": {"by": by}}
            tune(folder, {"student": (generator, {})}, BORDER, (distill, report), workdir, measured=measured)
            (workdir / "config.json").write_text(json.dumps({"seed": by}))
    combine([("", out / "by_1"), ("", out / "by_3")], out / "both", "python -m x")
    return out, said.getvalue()


def test_a_metric_from_outside_is_in_log_guard_and_reports(drift):
    out, said = drift
    for by in (1, 3):
        lines = held_out(metrics.read(out / f"by_{by}" / "student"))
        assert [line["held_out/drift"] for line in lines] == [0, by, 2 * by]
        assert [line["held_out/score"] is not None for line in lines] == [True, False, False]
        assert f"student 4/4  held out: reward {lines[2]['held_out/reward']:.4g} drift {2 * by}\n" in said
        assert checkpoint.read_card(out / f"by_{by}" / "student")["transformer"]["path"] == "checkpoints/0"
        rows = json.loads((out / f"by_{by}" / "report/report.json").read_text())["rows"]
        assert {row["model"]: row["drift"] for row in rows} == {
            "data": 0,
            "data through the VAE": by,
            "teacher": 2 * by,
            "teacher, 4 steps": 3 * by,
            "teacher, ancestral, 3 steps": 4 * by,
            "student": 5 * by,
        }
    table = (out / "both/report.md").read_text("utf-8")
    (line,) = [line for line in table.splitlines() if line.startswith("| student |")]
    assert "| 10.0 ± 7.1 px |" in line  # of 5 and 15
    assert "\n- Drift, lower is better: More at every call.\n" in table
    assert json.loads((out / "both/report.json").read_text())["columns"][0]["unit"] == "px"


@needs_browser
def test_a_metric_from_outside_is_on_the_page(drift, tmp_path):
    out, _ = drift
    with open_browser(tmp_path / "profile") as browser:
        browser.get((out / "both/index.html").as_uri())
        (card,) = [card for card in browser.find_elements("class name", "card") if card.text.startswith("Drift")]
        assert card.is_displayed()
        lines = card.text.splitlines()
        assert lines[:3] == ["Drift", "lower is better", "More at every call."]
        assert "student 10.0 ± 7.1 px" in card.text.replace("\n", " ")
        (tile,) = [tile for tile in browser.find_elements("css selector", ".tiles div") if "Drift" in tile.text]
        assert tile.text.splitlines() == ["Drift, lower is better", "10.0 px", "teacher 4.00 px"]
        (table,) = browser.find_elements("css selector", "#measures ~ .scroll table")
        assert "Drift" in table.text
        assert browser.execute_script("return document.documentElement.scrollWidth") == 1280


def test_a_student_may_wait_for_its_reward_model(folder, tmp_path):
    """While the latent model learns alone nothing becomes better: that does not count against the student."""
    guard = {"metric": "-frechet", "tolerance": 1e9, "patience": 1}
    generator = {"objectives": NOTHING | {"latent_reward": 1.0}, "iterations": 2, "guard": guard}
    (tmp_path / "encoded").symlink_to(folder / "encoded")
    (log,) = tune(folder, {"student": (generator, {"pretrain": 6})}, stages=(distill,), workdir=tmp_path).values()
    assert [line["step"] for line in held_out(log)] == [-1, 1, 3, 5, 7]


def test_the_fake_score_sees_batches_of_its_own(folder, tmp_path, monkeypatch):
    """As many as it has updates, and none of them the generator's."""
    seen, compiled = [], distill_module.compiled

    def spy(*arguments):
        def record(part):
            def call(state, frozen, batch, key):
                seen.append((part.name, np.asarray(batch["latents"])))
                return part.step(state, frozen, batch, key)

            return dataclasses.replace(part, step=call)

        return list(map(record, compiled(*arguments)))

    monkeypatch.setattr(distill_module, "compiled", spy)
    (tmp_path / "encoded").symlink_to(folder / "encoded")
    generator = {"objectives": NOTHING | {"variational_score": 1.0}, "iterations": 1}
    tune(folder, {"student": (generator, {})}, stages=(distill,), workdir=tmp_path, updates=3)
    assert [name for name, _ in seen] == ["generator", "fake_score", "fake_score", "fake_score"]
    rows = [row.tobytes() for _, latents in seen for row in latents]
    assert len(set(rows)) == len(rows) == 16


def test_a_policy_gradient_goes_on_where_it_stopped(folder, logs, tmp_path):
    """Its baselines and the position in the data are in the checkpoint: to the bit the same student."""
    copied(folder, tmp_path, "ddpo")
    again = tune(folder, {"ddpo": WAYS["ddpo"]}, stages=(distill,), workdir=tmp_path)["ddpo"]
    states = []
    for workdir, log in ((folder, logs["ddpo"]), (tmp_path, again)):
        _, params = load(workdir / "ddpo", parts=("transformer",)).networks["transformer"]
        lines = [line for line in log if line["step"] == 3]
        states.append((params["mix"].tolist(), [line.get("reward_trajectory") for line in lines]))
    assert states[0] == states[1]


def test_a_student_is_compared_with_its_start(logs):
    """It is its start at the first update, and no longer at the next ones."""
    first, *later = [line["loss/start_divergence"] for line in logs["ddpo"] if "loss/start_divergence" in line]
    assert first > 0  # the mean of the first two updates
    assert later[-1] > first


def test_the_videos_of_a_group_are_scored_for_its_first_caption(folder, tmp_path, monkeypatch):
    seen, numbers = [], distill_module.prompt_numbers
    monkeypatch.setattr(distill_module, "prompt_numbers", lambda words: seen.append(words) or numbers(words))
    (tmp_path / "encoded").symlink_to(folder / "encoded")

    def run(group):
        objectives = NOTHING | {"policy_gradient": {"weight": 1.0, "group": group}}
        student = {f"of_{group}": ({"objectives": objectives, "iterations": 1}, {})}
        tune(folder, student, stages=(distill,), workdir=tmp_path)

    run(2)
    ((one, two, three, four),) = seen
    assert one == two != three == four
    with pytest.raises(UserError, match=r"batch_size 4 .* 1 devices and groups of 3: give a multiple of 3"):
        run(3)


AREA = "dollar_jax.rewards.shapes_world:CaptionArea"


def test_a_reward_that_reads_captions_needs_a_model_that_does(folder, tmp_path):
    """It cannot be learnt without them. The width of the text is the teacher's."""
    student = {"student": ({"objectives": NOTHING | {"latent_reward": 1.0}, "iterations": 1}, {})}
    (tmp_path / "encoded").symlink_to(folder / "encoded")
    with pytest.raises(UserError, match=r"CaptionArea reads captions, .*: set reward.reads_captions"):
        tune(folder, student, AREA, (distill,), tmp_path)
    log = tune(folder, student, AREA, (distill,), tmp_path, reads_captions=True)["student"]
    assert np.isfinite(log[-1]["held_out/reward_estimate"])


def test_a_student_of_no_updates_is_its_start(folder, tmp_path):
    (tmp_path / "encoded").symlink_to(folder / "encoded")
    tune(folder, {"start": ({"objectives": CD, "iterations": 0}, {})}, stages=(distill,), workdir=tmp_path)
    _, params = load(tmp_path / "start", parts=("transformer",)).networks["transformer"]
    _, teacher = load(folder / "teacher", parts=("transformer",)).networks["transformer"]
    np.testing.assert_array_equal(params["mix"], teacher["mix"])


def test_a_finished_student_is_passed_over(folder, logs, tmp_path, monkeypatch):
    """The same command again does not compile its steps again."""
    monkeypatch.delattr("dollar_jax.stages.distill.compiled")
    tune(folder, {"refl": WAYS["refl"]}, stages=(distill,))
    copied(folder, tmp_path, "refl")
    with pytest.raises(NameError, match="compiled"):
        tune(folder, {"refl": WAYS["refl"]}, stages=(distill,), workdir=tmp_path)


REWARD = """
import torch

calls = 0


def score(frames, captions, fault):
    global calls
    calls += 1
    if calls == fault:
        raise RuntimeError("out of order")
    return torch.from_numpy(frames).mean(dim=(1, 2, 3, 4))
"""


def test_a_faulty_reward_costs_no_checkpoint(folder, tmp_path, monkeypatch):
    """A PyTorch function in a file of the user's: it raises on the way, is mended, and the same command goes on."""
    (tmp_path / "mine.py").write_text(REWARD)
    (tmp_path / "encoded").symlink_to(folder / "encoded")
    monkeypatch.syspath_prepend(tmp_path)
    student = {"lrm": ({"objectives": NOTHING | {"latent_reward": 1.0}}, {})}

    def run(fault):
        options = {"fault": fault}
        return tune(folder, student, "mine:score", (distill,), tmp_path, options=options)["lrm"]

    with pytest.raises(UserError, match=r"mine:score raised RuntimeError: out of order \(mine.py, line 11\)"):
        run(10)  # three look at captions, two (batches) at the start, two, and two for the checkpoint of two updates
    saved = [path for path in (tmp_path / "lrm/checkpoints").iterdir() if path.name.isdigit()]
    assert [path.name for path in saved] == ["2"]
    assert json.loads((saved[0] / "_CHECKPOINT_METADATA").read_text())
    del sys.modules["mine"]
    assert run(0)[-1]["step"] == 3


@pytest.mark.parametrize(
    ("generator", "reward", "name", "words"),
    [
        ({"objectives": NOTHING | {"refl": 1.0}}, {}, "brightness", "brightness has no gradient"),
        ({"objectives": NOTHING | {"latent_reward": 1.0}}, {}, "my_reward", "no module"),
    ],
)
def test_what_is_refused(folder, tmp_path, generator, reward, name, words):
    (tmp_path / "encoded").symlink_to(folder / "encoded")
    generator = {**generator, "objectives": {"variational_score": 0.0, **generator["objectives"]}}
    with pytest.raises(UserError, match=words):
        tune(folder, {"student": (generator, reward)}, name, (distill,), tmp_path)
