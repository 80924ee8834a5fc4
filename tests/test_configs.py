"""The paper's configs, traced at their full size without spending memory on it."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax import diffusion
from dollar_jax.config import put_named, take_named
from dollar_jax.errors import UserError
from dollar_jax.fields import SCHEMA
from dollar_jax.models import build
from dollar_jax.models.network import count_parameters
from dollar_jax.pipeline import at_size
from dollar_jax.rewards.judge import Judge
from dollar_jax.stages.student import student_config, student_schedule
from dollar_jax.steps import dollar
from dollar_jax.steps.distillation import Distillation
from dollar_jax.types import Condition


def load(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.lock()
    return config


@pytest.mark.parametrize("name", ["shapes", "pairs", "dollar", "teacher", "cogvideox_2b", "wan", "shapes_wan"])
def test_a_config_has_every_field_of_the_stages_that_it_trains(name):
    """A stage may read a field only at its end."""
    config = load(name)
    assert config.stages
    for stage in {"vae", "teacher"} & set(config.stages):
        assert not SCHEMA["properties"][stage]["properties"].keys() - {"path", "public"} - set(config[stage]), stage
    with pytest.raises((AttributeError, KeyError)):
        config.generator.unknown = 1


@pytest.mark.parametrize(
    ("flags", "name", "options"),
    [
        # Another reward has none of the options of the first, in whatever order flags stand.
        (["name=my_rewards:score"], "my_rewards:score", {}),
        (["options.strictness=2", "name=my_rewards:score"], "my_rewards:score", {"strictness": 2}),
        (
            ["name=executable", "options.command=['julia', 'reward.jl']"],
            "executable",
            {"command": ["julia", "reward.jl"]},
        ),
        # The same one has; a text stays a text.
        (["options.checkpoint=2024"], "hpsv2", {"checkpoint": "2024", "tokenizer": "", "dtype": "bfloat16"}),
        (
            ["name=hpsv2", "options.tokenizer=CLIP"],
            "hpsv2",
            {"checkpoint": "", "tokenizer": "CLIP", "dtype": "bfloat16"},
        ),
    ],
)
def test_a_reward_on_the_command_line(flags, name, options):
    config = load("dollar")
    rest, changes = take_named(["main", *(f"--config.reward.{flag}" for flag in flags), "--config.reward.frames=3"])
    assert rest == ["main", "--config.reward.frames=3"]
    put_named(config, changes)
    assert config.reward.name == name
    assert config.reward.options.to_dict() == options
    assert take_named(["--config.reward.name", name, "--workdir=W"]) == (
        ["--workdir=W"],
        [("reward", "name", "", name)],
    )


@pytest.mark.parametrize(("text", "value"), [("false", False), ("True", True), ("0.5", 0.5), ("student", "student")])
def test_an_option_on_the_command_line(text, value):
    config = load("dollar")
    _, changes = take_named([f"--config.generator.objectives.variational_score.option={text}"])
    put_named(config, changes)
    option = config.generator.objectives.variational_score.option
    assert (type(option), option) == (type(value), value)


@pytest.mark.parametrize("name", ["dollar", "cogvideox_2b", "cogvideox_lora", "wan", "wan_lora"])
def test_every_iteration_of_a_large_student_is_a_line(name):
    """Or the first loss, the time left and a value that is not finite would be seen after an hour."""
    config = load(name)
    assert all(student_config(config, student).generator.log_every == 1 for student in config.students)


@pytest.mark.parametrize("name", ["cogvideox_lora", "wan_lora"])
def test_a_reward_model_on_one_gpu_takes_few_large_videos_at_a_time(name):
    config = load(name)
    assert all(student_config(config, student).reward.batch_size <= 2 for student in config.students)


def test_the_papers_recipe():
    """What Sec. 4.1 says, and what its reference for the student's sampler does."""
    config = load("dollar")
    for name in config.students:
        generator = student_config(config, name).generator
        assert generator.iterations * generator.batch_size == pytest.approx(320_000, rel=1e-3)
        assert (generator.sampler, generator.rollout, generator.matched_times) == ("renoise", "simulate", "all")
        assert generator.optimizer.learning_rate == 2e-5
    weights = {name: fields.weight for name, fields in generator.objectives.items()}
    assert weights == {"variational_score": 1.0, "consistency": 0.5, "latent_reward": 1.0}
    assert generator.objectives.latent_reward.units == "raw"
    assert (config.fake_score.updates, config.reward.reads_captions) == (5, True)


def test_wans_recipe():
    """Self-Forcing's four times at shift 5, up to what diffusers' Euler can follow; 81 frames are 21 of 60 x 104."""
    config = load("wan")
    for name in config.students:
        generator = student_config(config, name).generator
        np.testing.assert_allclose(generator.times, [625, 2500 / 3, 937.5, 1000], atol=0.5)
        assert (generator.optimizer.learning_rate, generator.batch_size) == (2e-6, 64)
        fields = student_schedule(student_config(config, name), {"kind": "flow", "shift": 3.0})
        schedule = diffusion.make_schedule(**fields)
        assert schedule.shift == 5
        score = generator.objectives.variational_score  # at .02 to .98 of the noise, as in Self-Forcing
        times = schedule.times[round(1000 * score.low) : round(1000 * score.high)]
        np.testing.assert_allclose([times[0], times[-1]], [20, 980], atol=5)  # of this distance are the first times
    with pytest.raises(UserError, match=r"generator\.schedule does not fit the teacher's"):
        student_schedule(config, {"kind": "ddpm"})
    quarter = importlib.import_module("configs.wan").get_config("quarter").video
    assert 4 * quarter.height * quarter.width == config.video.height * config.video.width


def test_the_papers_reward_needs_weights():
    """One line, before anything else is done."""
    with pytest.raises(UserError, match=r"reward hpsv2: "):
        Judge(load("dollar").reward)


@pytest.mark.parametrize("name", ["shapes", "dollar"])
def test_a_student_that_is_tuned_for_a_reward_is_guarded(name):
    config = student_config(load(name), "vsd_cd_lrm")
    assert config.generator.guard.metric == "-frechet"
    assert config.held_out.videos_per_caption > 0
    checkpoints = config.generator.iterations // config.generator.save_every
    assert checkpoints >= 5  # fewer are no choice


def told(size):
    shape = jax.ShapeDtypeStruct
    return Condition(shape((size, 226, 256), jnp.float32), shape((size, 226), bool))


def test_the_papers_step_at_the_papers_size():
    config, teacher = load("dollar"), load("teacher")
    part = {"architecture": teacher.vae.architecture, "config": teacher.vae.network.to_dict()}
    card = at_size({"vae": part}, config.video.to_dict())
    assert card["latent_shape"] == [40, 24, 40, 16]  # 128 frames of 192 x 320, 16 become 5

    config = student_config(config, "vsd_cd_lrm")
    assert (config.generator.accumulate, config.generator.batch_size) == (7, 56)
    network = build(
        teacher.teacher.architecture, teacher.teacher.network.to_dict(), dtype=jnp.bfloat16, remat="nothing_saveable"
    )
    setup = Distillation(
        network,
        build(config.reward.architecture, config.reward.network.to_dict() | {"text_width": 256}),
        "conjugate",
        diffusion.make_schedule(**teacher.teacher.schedule),
        config,
        card["latent_shape"],
    )
    key = jax.random.key(0)
    params = jax.eval_shape(network.init, key)
    assert 1.6e9 < count_parameters(params) < 1.8e9  # 2B counts the text encoder's projection and rounds up
    state = jax.eval_shape(setup.init, params, key)
    batch = {
        "latents": jax.ShapeDtypeStruct((56, *card["latent_shape"]), jnp.float32),
        "condition": told(56),
    }
    frozen = {"teacher": params, "negative": told(1), "empty": told(1)}
    after, metrics = jax.eval_shape(dollar.make_generator_step(setup), state, frozen, batch, key)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {"loss/variational_score", "loss/consistency", "loss/latent_reward"} < set(metrics)
    after, _ = jax.eval_shape(dollar.make_fake_score_step(setup), state, {}, batch, key)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
