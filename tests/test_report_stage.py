"""The rows of a run's report: which clips and samplings they are made of."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import shapes
from dollar_jax.pipeline import Pipeline
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
def models(monkeypatch):
    """Cards alone: names of samplings are made of them."""
    cards = {
        "teacher": {"role": "teacher", "times": [1] * 50, "sampler": "ddim", "guidance": 0.0},
        "student": {"role": "student", "times": [1] * 4, "sampler": "ddim", "guidance": 0.0},
    }
    for card in cards.values():
        card["transformer"] = {"config": {}}
    monkeypatch.setattr(stage, "load", lambda folder: Pipeline(cards[folder.name], {}, None))
    monkeypatch.setattr(stage, "teacher_folder", lambda config, workdir: workdir / "teacher")


def test_the_teacher_by_other_samplers(models):
    config = shapes.get_config()
    config.students = ConfigDict({"student": {}})
    config.report.update({"fewer_steps": (), "teacher_samplers": (("ddim", 250), ("ancestral", 50))})
    entries = dict(stage._entries(config, Path("W")))
    assert {name: (entry.pipeline.card["sampler"], entry.steps) for name, entry in entries.items()} == {
        "teacher": ("ddim", 50),
        "teacher, 4 steps": ("ddim", 4),
        "teacher, ddim, 250 steps": ("ddim", 250),
        "teacher, ancestral, 50 steps": ("ancestral", 50),
        "student": ("ddim", 4),
    }
