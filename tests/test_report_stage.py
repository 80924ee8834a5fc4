"""The rows of a run's report: which clips and samplings they are made of."""

import json
import shutil

import jax
import numpy as np
import pytest
import toy_pipeline
from ml_collections import ConfigDict

from configs import shapes
from dollar_jax import checkpoint
from dollar_jax.config import named
from dollar_jax.evaluate.timing import Timing
from dollar_jax.models.network import Network
from dollar_jax.pipeline import Pipeline
from dollar_jax.sharding import make_mesh
from dollar_jax.stages import report as stage
from dollar_jax.stages.report import _balanced


def clips(**counts):
    return [{"caption": caption, "number": i} for caption, count in counts.items() for i in range(count)]


def test_data_have_as_many_clips_of_each_caption_as_models():
    assert _balanced(clips(a=3, b=5, c=2), 3) == clips(a=3, b=3)
    assert _balanced(clips(a=1, b=2), 1) == clips(a=1, b=1)


def test_data_with_a_caption_for_each_video_keep_all_clips():
    """One caption with two videos must not stand for all data."""
    one_each = clips(a=2, b=1, c=1)
    assert _balanced(one_each, 2) == one_each


@pytest.fixture
def config(tmp_path):
    """Of a run in `tmp_path` with a toy student, whose toy teacher was made for smaller videos."""
    config = shapes.get_config()
    config.video.update({"frames": 4, "height": 24, "width": 32})
    config.teacher.path = str(tmp_path / "from_elsewhere")
    config.students = ConfigDict({"student": {}})
    for name, role, times in (
        ("from_elsewhere", "teacher", range(19, 1000, 20)),
        ("student", "student", range(249, 1000, 250)),
    ):
        folder = toy_pipeline.write(tmp_path / name, ["a cat"])
        card = checkpoint.read_card(folder) | {"role": role, "times": list(times), "sampler": "ddim"}
        checkpoint.write_card(folder, card)
    return config


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"garbage"),
        lambda file: np.savez(file, values="[1"),
        lambda file: np.savez(file, values="{}"),
        lambda file: np.savez(file, values=np.array([{}], dtype=object), frames=np.zeros(1)),
    ],
)
def test_a_damaged_measurement_is_made_again(tmp_path, damage):
    damage(tmp_path / "0.npz")
    for made in (1, 2):  # the first is kept
        values, frames = stage._kept(tmp_path / "0.npz", lambda made=made: ({"reward": made}, np.ones(made)))
        assert values == {"reward": 1}
        assert frames.tolist() == [1]


def entries_of(config, workdir):
    teacher, condition, negative = stage._teacher(config, workdir, ["a cat", "a dog", "a cat"])
    assert len(condition.embedding) == 3
    assert len(negative.embedding) == 1
    return dict(stage._entries(config, workdir, teacher))


def test_the_teacher_by_other_samplers(config, tmp_path):
    config.report.update({"fewer_steps": (), "teacher_samplers": (("ddim", 250), ("ancestral", 50))})
    entries = entries_of(config, tmp_path)
    assert {name: (entry.pipeline.card["sampler"], entry.steps) for name, entry in entries.items()} == {
        "teacher": ("ddim", 50),
        "teacher, 4 steps": ("ddim", 4),
        "teacher, ddim, 250 steps": ("ddim", 250),
        "teacher, ancestral, 50 steps": ("ancestral", 50),
        "student": ("ddim", 4),
    }


def test_the_teacher_with_other_guidance(config, tmp_path):
    config.report.update({"fewer_steps": (), "teacher_samplers": (), "teacher_guidance": (0.0, 2.5)})
    entries = entries_of(config, tmp_path)
    assert {name: (entry.guidance, entry.steps) for name, entry in entries.items() if "guidance" in name} == {
        "teacher, guidance 0": (0.0, 50),
        "teacher, guidance 2.5": (2.5, 50),
    }


def test_a_teacher_of_two_experts_has_the_guidance_of_both(config, tmp_path):
    card = checkpoint.read_card(tmp_path / "from_elsewhere")
    two = {"guidance": 3.0, "low_guidance": {"guidance": 2.0, "below": 875.0}}
    checkpoint.write_card(tmp_path / "from_elsewhere", card | two)
    config.report.update({"fewer_steps": (), "teacher_samplers": ()})
    entries = entries_of(config, tmp_path)
    assert entries["teacher"].guidance == (3.0, 2.0, 875.0)
    assert entries["teacher"].calls == 100


def test_the_teacher_makes_videos_of_the_runs_size(config, tmp_path):
    assert checkpoint.read_card(tmp_path / "from_elsewhere")["latent_shape"] == [2, 2, 2, 4]
    for name, entry in entries_of(config, tmp_path).items():
        if name.startswith("teacher"):
            assert entry.pipeline.card["latent_shape"] == [4, 3, 4, 4], name


def test_networks_compute_as_in_training(config, tmp_path, monkeypatch):
    """In the config's dtype and with its attention, not in float32, for which GPUs have no fast attention."""
    asked = []

    def transformer(**options) -> Network:
        asked.append(options)
        return toy_pipeline.transformer(**options)

    monkeypatch.setattr(toy_pipeline, "recorded", transformer, raising=False)
    for folder in (tmp_path / "from_elsewhere", tmp_path / "student"):
        card = checkpoint.read_card(folder)
        own = card["transformer"] | {"architecture": "toy_pipeline:recorded"}
        checkpoint.write_card(folder, card | {"transformer": own})
    config.update({"dtype": "bfloat16", "attention": "xla"})
    entries_of(config, tmp_path)
    assert asked
    assert all((given["dtype"], given["attention"]) == ("bfloat16", "xla") for given in asked)


def test_networks_are_in_memory_once(config, tmp_path):
    """A text encoder is larger than the rest of a model, and is not needed once prompts are encoded."""
    entries = entries_of(config, tmp_path)
    networks = entries["teacher"].pipeline.networks
    assert networks.keys() == {"transformer", "vae"}
    assert entries["student"].pipeline.networks["vae"] is networks["vae"]
    assert entries["student"].pipeline.networks["transformer"] is not networks["transformer"]


def test_a_report_that_was_stopped_goes_on(config, tmp_path, monkeypatch):
    """Models that were measured are not sampled or timed again."""
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    config.data = ConfigDict({"path": "", "prompts": str(tmp_path / "prompts.txt")})
    config.report.update({"captions": 2, "videos_per_caption": 2, "clips": 2, "repeats": 1, "batch_size": 4})
    config.report.update({"fewer_steps": (2,), "teacher_samplers": (), "teacher_guidance": (2.5,)})
    config.report.metrics = named(vendi={})
    sampled, seconds, sample = [], [], Pipeline.videos

    def videos(model, *inputs, steps, guidance, **options):
        if len(sampled) == stop:
            raise KeyboardInterrupt
        sampled.append((steps, guidance))
        return sample(model, *inputs, steps=steps, guidance=guidance, **options)

    def time_warm(call, videos, repeats):
        assert (call().shape[0], videos, repeats) == (4, 4, 1)
        return Timing(float(len(sampled)), 0.0, 0.5)

    def report():
        sampled.clear()
        seconds.clear()
        stage.report(config, tmp_path, make_mesh(config.mesh, jax.devices()[:1]))
        rows = json.loads((tmp_path / "report/report.json").read_text())["rows"]
        (tmp_path / "report/report.json").unlink()
        seconds.extend(row.pop("diffusion_seconds_per_video") for row in rows)
        return rows

    def clips():
        return {path: path.read_bytes() for path in (tmp_path / "report/clips").rglob("*") if path.is_file()}

    monkeypatch.setattr(Pipeline, "videos", videos)
    monkeypatch.setattr(stage, "time_warm", time_warm)
    stop = None
    whole, shown = report(), clips()
    assert sampled == [(50, 0.0), (4, 0.0), (50, 2.5), (4, 0.0), (2, 0.0)]
    assert seconds == [1, 2, 3, 4, 5]
    stop = 4
    with pytest.raises(KeyboardInterrupt):
        report()
    stop = None
    assert report() == whole
    assert sampled == [(2, 0.0)]
    assert seconds == [1, 2, 3, 4, 1]
    assert clips() == shown
    assert not list((tmp_path / "report").glob(".measured*"))


def test_what_was_measured_counts_for_the_same_config_and_networks(config, tmp_path):
    before = stage._identity(config, tmp_path)
    assert stage._identity(config, tmp_path) == before
    config.report.metrics = named(vendi={})
    after = stage._identity(config, tmp_path)
    assert after != before
    shutil.rmtree(tmp_path / "student/transformer")
    _, params = toy_pipeline.make(seed=1).networks["transformer"]
    checkpoint.save_params(tmp_path / "student/transformer", params)
    assert stage._identity(config, tmp_path) not in (before, after)
