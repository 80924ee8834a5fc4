"""The rows of a run's report: which clips and samplings they are made of."""

import pytest
import toy_pipeline
from ml_collections import ConfigDict

from configs import shapes
from dollar_jax import checkpoint
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


def test_the_teacher_makes_videos_of_the_runs_size(config, tmp_path):
    assert checkpoint.read_card(tmp_path / "from_elsewhere")["latent_shape"] == [2, 2, 2, 4]
    for name, entry in entries_of(config, tmp_path).items():
        if name.startswith("teacher"):
            assert entry.pipeline.card["latent_shape"] == [4, 3, 4, 4], name


def test_networks_are_in_memory_once(config, tmp_path):
    """A text encoder is larger than the rest of a model, and is not needed once prompts are encoded."""
    entries = entries_of(config, tmp_path)
    networks = entries["teacher"].pipeline.networks
    assert networks.keys() == {"transformer", "vae"}
    assert entries["student"].pipeline.networks["vae"] is networks["vae"]
    assert entries["student"].pipeline.networks["transformer"] is not networks["transformer"]
