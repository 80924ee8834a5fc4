"""Wan's scheduler_config.json: what is read, what is written, what is refused."""

import json
import shutil

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from dollar_jax.convert.families import wan
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.diffusion import make_schedule
from dollar_jax.errors import UserError

PUBLIC = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}


def card(spacing: str, sampler: str, count: int, shift: float = 5.0) -> dict:
    schedule = {"kind": "flow", "steps": 1000, "shift": shift, "spacing": spacing}
    times = make_schedule(**schedule).spaced(count)
    return {"prediction_type": "flow", "schedule": schedule, "times": times, "sampler": sampler}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (PUBLIC, card("unipc", "unipc", 50, 3.0)),
        (PUBLIC | {"solver_order": 1}, card("unipc", "unipc1", 50, 3.0)),
        (PUBLIC | {"solver_order": 1, "disable_corrector": [0, 1, 2, 3]}, card("unipc", "ddim", 4, 3.0)),
        (EULER, card("euler", "ddim", 50)),
    ],
)
def test_there_and_back(theirs, ours):
    assert wan.read_scheduler(theirs) == ours
    name, content = wan.write_scheduler(ours)
    kind = {kind.__name__: kind for kind in (UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler)}[name]
    for field, value in theirs.items():
        assert {"_class_name": name, **kind.from_config(content).config}[field] == value


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": "ancestral"},  # no stock scheduler draws the posterior's noise
        {"times": (625.0, 833.0, 937.0, 1000.0)},  # nor goes to other times
        {"prediction_type": "x0"},
        {"schedule": {"kind": "ddpm"}},
    ],
)
def test_other_students_have_our_own(change):
    assert wan.write_scheduler(card("unipc", "ddim", 4) | change) is None


def test_a_student_of_one_step_has_no_terminal():
    name, content = wan.write_scheduler(card("stretched", "renoise", 1))
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(content)
    scheduler.set_timesteps(1)
    np.testing.assert_allclose(scheduler.timesteps, [1000])
    assert name == "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"_class_name": "DDIMScheduler"}, "the scheduler is a DDIMScheduler, which cannot be converted"),
        ({"_class_name": ["UniPCMultistepScheduler"]}, "which cannot be converted; known are"),
        ({"flow_shift": 0}, "the scheduler: flow_shift: 0 is less than or equal to the minimum of 0"),
        ({"use_flow_sigmas": False}, "use_flow_sigmas = False: only True"),
        ({"prediction_type": "epsilon"}, "prediction_type = 'epsilon': only 'flow_prediction'"),
        ({"solver_order": 3}, "solver_order"),
        ({"solver_type": "bh1"}, "solver_type = 'bh1': only 'bh2'"),
        ({"predict_x0": False}, "predict_x0 = False: only True"),
        ({"lower_order_final": False}, "lower_order_final = False: only True"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas = True, which cannot be converted"),
        ({"shift_terminal": 0.1}, "shift_terminal = 0.1"),
        ({"disable_corrector": [0]}, "only order 1 without a corrector"),
    ],
)
def test_what_cannot_be_followed(change, fault):
    with pytest.raises(UserError, match=fault):
        wan.read_scheduler(PUBLIC | change)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"_class_name": "WanImageToVideoPipeline"}, "holds a WanImageToVideoPipeline, which is neither sampled nor"),
        ({"_class_name": "WanVACEPipeline"}, "holds a WanVACEPipeline"),
        ({"boundary_ratio": 0.875}, "transformer_2 is missing: this WanPipeline has an expert for low noise"),
        ({"transformer_2": 5}, "transformer_2 is missing"),
        ({"transformer_2": {"a": 1}}, "transformer_2 is missing"),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, "has image_encoder = "),
    ],
)
def test_folders_of_another_version(wan_folder, tmp_path, change, fault):
    shutil.copytree(wan_folder, tmp_path / "stock")
    path = tmp_path / "stock" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=fault):
        from_torch(tmp_path / "stock", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
