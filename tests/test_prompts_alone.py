"""Distillation from a file of prompts: no video is read, encoding resumes, and what needs videos is refused."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy_family
from ml_collections import ConfigDict

from configs import dollar, shapes
from dollar_jax import checkpoint, metrics, progress
from dollar_jax.check import check
from dollar_jax.config import named
from dollar_jax.data import encoding
from dollar_jax.data.dataset import open_dataset
from dollar_jax.data.pipeline import batches
from dollar_jax.data.text import write_word_tokenizer
from dollar_jax.errors import UserError
from dollar_jax.importing import resolve, trust
from dollar_jax.pipeline import load
from dollar_jax.sharding import make_mesh
from dollar_jax.stages import common, encode
from dollar_jax.stages.common import encoded_source

LENGTH = 7
PROMPTS = [" ".join(["a", "red", "ring", "moves"][: 1 + i % 4]) + f" {i}" for i in range(21)]
CARD = {
    "role": "teacher",
    "prediction_type": "flow",
    "schedule": {"kind": "flow", "shift": 5.0},
    "times": list(toy_family.FOUR),
    "sampler": "ddim",
    "guidance": 0.0,
    "negative_prompt": "",
    "tokenizer": {"path": "tokenizer", "length": LENGTH},
    "video": {"frames": 2, "height": 16, "width": 16, "fps": 8, "independent_chunk": 0},
    "latent_shape": [2, 4, 4, toy_family.CHANNELS],
}


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A random teacher of the toy family, whose text encoder gives zeros behind a caption's end."""
    folder, parts = tmp_path_factory.mktemp("prompts") / "teacher", {}
    write_word_tokenizer(folder / "tokenizer", PROMPTS)
    sizes = {"vae": {}, "transformer": {"width": 8}, "text_encoder": {"vocab_size": 40}}
    for number, (name, config) in enumerate(sizes.items()):
        network = getattr(toy_family, name)(**config)
        checkpoint.save_params(folder / name, network.init(jax.random.key(number)))
        parts[name] = {"architecture": f"toy_family:{name}", "config": config, "path": name, "item": ""}
    checkpoint.write_card(folder, CARD | parts | {"vae": parts["vae"] | {"scaling_factor": 1.0}})
    return folder


@pytest.fixture
def config(teacher, tmp_path, monkeypatch):
    """VSD alone, from three pieces of prompts."""
    monkeypatch.setattr(encode, "PIECE", 8)
    trust(["toy_family"])
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"caption": prompt}) + "\n\n" for prompt in PROMPTS))
    config = shapes.get_config()
    config.stages = ("encode", "distill", "report")
    config.video.update({"frames": 2, "height": 16, "width": 16})
    config.data = ConfigDict({"path": "", "prompts": str(file)})
    config.teacher.path = str(teacher)
    loop = {"iterations": 3, "save_every": 2, "log_every": 1, "batch_size": 2, "show_every": 0}
    config.generator.update({**loop, "times": toy_family.FOUR})
    config.generator.objectives = named(variational_score=1.0, consistency=0.0, latent_reward=0.0)
    config.generator.optimizer.warmup = config.reward.optimizer.warmup = 0
    config.reward.network.channels = toy_family.CHANNELS
    config.report.update({"captions": 3, "videos_per_caption": 2, "fewer_steps": (), "clips": 2, "repeats": 1})
    config.report.update({"teacher_samplers": (), "batch_size": 6})
    config.students = ConfigDict({"student": {"start_from": ""}})
    return config


def run(config, workdir, *stages):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    check(config, mesh)
    with jax.set_mesh(mesh):
        for stage in stages:
            resolve(stage, "dollar_jax.stages")(config, workdir, mesh)


def refused(config, words):
    with pytest.raises(UserError, match=words) as refusal:
        run(config, None)
    assert "\n" not in str(refusal.value)


def test_a_student_of_prompts(config, tmp_path, capsys, monkeypatch):
    """All stages without a real clip, by VSD and a reward; metrics that need clips are named and left out."""

    def no_videos(*_):
        raise AssertionError("a video was read")

    monkeypatch.setattr(common, "video_source", no_videos)
    monkeypatch.setattr(progress, "QUIET", 0)
    config.report.metrics = named(frechet={}, vendi={})
    config.generator.objectives.latent_reward.weight = 0.1
    config.generator.guard.metric = ""
    run(config, tmp_path, "encode", "distill", "report")
    told = capsys.readouterr()
    assert "not measured, because it takes real videos: frechet\n" in told.out
    assert "encode: 16 of 21 prompts, 0 min left\n" in told.err
    log = metrics.read(tmp_path / "student")
    steps = [line for line in log if "loss" in line]
    assert len(steps) == 3
    assert all(np.isfinite(line["loss/variational_score"]) and line["norm/student_update"] > 0 for line in steps)
    assert all("reward_student" in line and "reward_data" not in line for line in steps)
    assert steps[0]["norm/reward_model_update"] > 0
    measured = {name.removeprefix("held_out/") for line in log for name in line if name.startswith("held_out/")}
    assert measured == {"vendi", "vendi_std", "reward", "reward_estimate", "reward_correlation"}
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["teacher", "teacher, 4 steps", "student"]
    assert all(np.isfinite(row["vendi"]) for row in rows)


def test_rows_of_zeros_are_not_stored_and_come_back(config, teacher, tmp_path):
    run(config, tmp_path, "encode")
    source, model = encoded_source(config, tmp_path), load(teacher, parts=("text_encoder",))
    assert [source[i]["caption"] for i in range(len(source))] == PROMPTS
    for index in (0, 1, 7, 8, 20):
        wanted = model.encode_text([PROMPTS[index]])
        stored, words = source[index], len(PROMPTS[index].split()) + 1  # and the end of the sentence
        assert stored["text"].shape == (words, 5)
        np.testing.assert_array_equal(stored["text"], wanted.embedding[0, :words].astype(np.float16))
    batch = next(iter(batches(source, 21, seed=0)))
    assert batch.keys() == {"caption", "condition"}
    assert set(batch["caption"]) == set(PROMPTS)
    wanted = model.encode_text(batch["caption"].tolist())
    np.testing.assert_allclose(batch["condition"].embedding, wanted.embedding, rtol=1e-3)
    np.testing.assert_array_equal(batch["condition"].mask, wanted.mask)
    np.testing.assert_allclose(batch["condition"].extra["pooled"], wanted.extra["pooled"], rtol=1e-2, atol=1e-4)


def test_encoding_resumes(config, tmp_path, monkeypatch):
    """Killed in the second piece: the first is not encoded again, and a file that changed meanwhile is refused."""
    seen, limit = [], 8

    def load_spy(folder, parts):
        model = load(folder, parts=parts)

        def encode_text(captions):
            if len(seen) >= limit:
                raise Killed
            seen.extend(captions)
            return model.encode_text(captions)

        return SimpleNamespace(encode_text=encode_text)

    monkeypatch.setattr(encode, "load", load_spy)
    monkeypatch.setattr(encoding, "CAPTIONS", 4)
    with pytest.raises(Killed):
        run(config, tmp_path, "encode")
    folder = tmp_path / "encoded_prompts"
    assert [path.name for path in folder.iterdir()] == ["00000"]
    (folder / ".00001.unfinished").mkdir()  # a killed process leaves it
    with pytest.raises(UserError, match=r"done\.json is missing"):
        encoded_source(config, tmp_path)

    text = (tmp_path / "prompts.jsonl").read_text()
    (tmp_path / "prompts.jsonl").write_text(text.replace("ring", "wing"))
    with pytest.raises(UserError, match=r"prompts.jsonl has changed since .*00000 was encoded from it"):
        run(config, tmp_path, "encode")
    (tmp_path / "prompts.jsonl").write_text(text)
    seen, limit = [], 99
    run(config, tmp_path, "encode")
    assert seen == [*PROMPTS[8:20], PROMPTS[20], *PROMPTS[20:] * 3]  # the last batch is filled up
    source = encoded_source(config, tmp_path)
    assert [source[i]["caption"] for i in range(len(source))] == PROMPTS
    monkeypatch.setattr(encode, "load", None)
    run(config, tmp_path, "encode")


def test_what_needs_videos_is_refused(config):
    config.generator.objectives.consistency.weight = 0.5
    refused(config, "student student: consistency needs videos: give it the weight 0, or set config.data.path")
    config.stages = ("encode",)
    run(config, None)  # nothing is distilled
    config.stages = ("encode", "distill")
    config.generator.objectives.consistency.weight = 0.0
    config.generator.objectives["toy_family:adversarial"] = ConfigDict({"weight": 0.1})
    refused(config, "toy_family:adversarial needs videos")
    config.generator.objectives["toy_family:adversarial"].weight = 0.0
    config.generator.rollout = "data"
    refused(config, "student student: generator.rollout=data needs videos")
    config.generator.rollout = "simulate"
    config.generator.objectives.latent_reward.weight = 0.1
    refused(config, "guard.metric=-frechet is not measured; choose one of .*vendi")
    config.generator.guard.metric = ""
    run(config, None)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("data.path", "/videos", "config.data has both path, for videos, and prompts"),
        ("stages", ("vae", "encode", "distill"), "the stage vae needs videos"),
        ("teacher.path", "", "prompts are encoded by the teacher's text encoder"),
        ("generator.batch_size", 8, "prompts.jsonl has 21 prompts, too few: an iteration takes 24"),
        ("data.prompts", "/nowhere", "/nowhere is no file"),
    ],
)
def test_other_faults(config, field, value, words):
    *parents, name = field.split(".")
    part = config[parents[0]] if parents else config
    part[name] = value
    refused(config, words)


def test_prompts_are_no_videos(config, tmp_path):
    run(config, tmp_path, "encode")
    config.data = ConfigDict({"path": str(tmp_path / "encoded_prompts" / "00000")})
    refused(config, "00000 has prompts without videos")
    assert len(open_dataset(config.data.path)) == 8


def test_the_papers_recipe_without_videos(config, tmp_path):
    """configs/dollar.py with three flags."""
    recipe = dollar.get_config()
    recipe.teacher.path, recipe.data.prompts = config.teacher.path, config.data.prompts
    recipe.generator.times, recipe.mesh.fsdp = toy_family.FOUR, 1
    recipe.generator.update({"batch_size": 2})
    del recipe.students.vsd_cd_lrm
    recipe.stages = ("encode", "distill")
    refused(recipe, "consistency needs videos")
    recipe.generator.objectives.consistency.weight = 0.0
    run(recipe, None)
