"""A flow map of Wan in diffusers' AnyFlow pipeline: the same latents for any number of steps."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import AnyFlowPipeline
from test_wan import PROMPTS, SIZE, noise_of, our_latents

from dollar_jax import checkpoint, pipeline
from dollar_jax.convert import anyflow_dit
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.errors import UserError
from dollar_jax.models.flow_map import with_targets
from dollar_jax.stages.student import flow_map_part

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and diffusers among themselves
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def student(wan_folder, tmp_path_factory):
    """A flow map that embeds its targets otherwise than its times, as after training."""
    folder = tmp_path_factory.mktemp("flow_map") / "student"
    from_torch(wan_folder, folder)
    card = pipeline.at_size(checkpoint.read_card(folder), SIZE)
    _, params = checkpoint.load_component(folder, card["transformer"])
    rng, params = np.random.default_rng(0), with_targets(params)
    params["delta_project"] = jax.tree.map(lambda x: x + rng.normal(size=x.shape), params["delta_project"])
    checkpoint.save_params(folder / "flow_map", params)
    part = flow_map_part(card["transformer"]) | {"path": "flow_map", "item": ""}
    schedule = {"kind": "flow", "shift": 5.0, "spacing": "trailing"}
    sampled = {"times": [625.0, 2500 / 3, 937.5, 1000.0], "sampler": "ddim", "guidance": 0.0}
    card |= {"role": "student", "transformer": part, "schedule": schedule, **sampled}
    checkpoint.write_card(folder, card)
    return folder


def test_a_flow_map_in_the_stock_pipeline(student, tmp_path):
    to_torch(student, tmp_path / "theirs")
    pipe = AnyFlowPipeline.from_pretrained(tmp_path / "theirs")
    pipe.set_progress_bar_config(disable=True)
    model = pipeline.load(student)
    noise, told = noise_of(model), (model.encode_text(PROMPTS), model.negative)
    size = {"num_frames": SIZE["frames"], "height": SIZE["height"], "width": SIZE["width"]}
    made = {}
    for steps in (1, 5):
        with torch.inference_mode():
            latents = pipe(
                PROMPTS,
                num_inference_steps=steps,
                latents=torch.tensor(noise).permute(0, 4, 1, 2, 3),
                output_type="latent",
                **size,
            ).frames
        theirs = latents.permute(0, 2, 3, 4, 1).numpy()
        made[steps] = our_latents(model, noise, told, steps, 0.0)
        np.testing.assert_allclose(made[steps], theirs, atol=1e-3 * np.abs(theirs).max())
    assert np.abs(made[1] - made[5]).max() > 0.1
    assert "AnyFlowPipeline.from_pretrained" in (tmp_path / "theirs" / "README.md").read_text()


def test_its_config_there_and_back(student, tmp_path):
    to_torch(student, tmp_path / "theirs")
    theirs = json.loads((tmp_path / "theirs" / "transformer" / "config.json").read_text())
    assert theirs["_class_name"] == "AnyFlowTransformer3DModel"
    ours = checkpoint.read_card(student)["transformer"]["config"]
    assert json.loads(json.dumps(anyflow_dit.config(theirs))) == ours
    assert theirs.items() >= json.loads(json.dumps(anyflow_dit.their_config(ours))).items()


def test_a_flow_map_without_a_pipeline_is_refused(student, tmp_path):
    """CogVideoX has none in diffusers."""
    card = checkpoint.read_card(student)
    network = card["transformer"] | {"architecture": "cogvideox_dit"}
    (tmp_path / "student").mkdir()
    checkpoint.write_card(tmp_path / "student", card | {"transformer": network})
    with pytest.raises(UserError, match="CogVideoXPipeline samples no flow map"):
        to_torch(tmp_path / "student", tmp_path / "out")
