"""A run of all stages with the toy family's networks and two students, also as a file for --config."""

import toy_family
from ml_collections import ConfigDict

from configs import shapes
from dollar_jax.config import named, put_named, set_named, take_named

NEGATIVE = "a blue cross standing still"
ADVERSARIAL = "toy_family:adversarial"


def make_config() -> ConfigDict:
    """One student, which learns from VSD, CD and a latent reward."""
    config = shapes.get_config()
    config.video.update({"frames": 2, "height": 16, "width": 16})
    config.data.clips = 48
    loop = {"iterations": 6, "save_every": 2, "log_every": 1, "batch_size": 4, "show_every": 0, "keep": 9}
    for stage in (config.vae, config.teacher, config.generator):
        stage.update(loop)
    config.vae.update({"architecture": "toy_family:vae", "per_channel": True})
    config.vae.network, config.text.network = ConfigDict(), ConfigDict({"width": 5})
    config.text.architecture = "toy_family:text_encoder"
    config.teacher.architecture, config.teacher.network = "toy_family:transformer", ConfigDict({"width": 16})
    config.teacher.prediction_type = "flow"
    config.teacher.schedule = ConfigDict({"kind": "flow", "shift": 5.0})
    config.teacher.update({"steps": 10, "guidance": 2.0, "negative_prompt": NEGATIVE})
    config.generator.times = toy_family.FOUR
    config.generator.objectives = named(
        variational_score={"weight": 1.0, "guidance": 1.0},
        consistency={"weight": 0.5, "guidance": 2.0},
        latent_reward={"weight": 0.1, "units": "deviations"},
    )
    config.generator.guard.metric = ""
    for part in (config.vae, config.teacher, config.generator, config.fake_score, config.reward):
        part.optimizer.warmup = 0
    config.held_out.videos_per_caption = 0
    config.reward.update({"batch_size": 2, "replay": 8})
    config.reward.network.channels = toy_family.CHANNELS
    config.students = ConfigDict({"student": {"start_from": ""}})
    return config


def adversarial_config() -> ConfigDict:
    """The run with the toy discriminator beside VSD, added as on the command line."""
    config = make_config()
    flags = ["=0.1", ".flip=1.0", ".own.network.width=7", ".own.options.margin=0.5", ".own.updates=2", ".own.ema=0.9"]
    rest, changes = take_named([f"--config.generator.objectives.{ADVERSARIAL}{flag}" for flag in flags])
    assert not rest
    put_named(config, changes)
    set_named(config.generator.objectives, {"consistency": 0.0, "latent_reward": 0.0})
    return config


def flow_map_config() -> ConfigDict:
    """The run with a student that is told where a step ends, with CD and both continuous-time objectives."""
    config = adversarial_config()
    config.generator.flow_map = True
    consistency = {"weight": 0.1, "guidance": 1.0, "warmup": 3}
    more = {"flow_map": {"weight": 0.5, "derivative": "jvp"}, "continuous_consistency": consistency}
    set_named(config.generator.objectives, more | {"consistency": 0.5})
    return config


def get_config() -> ConfigDict:
    """With everything that a checkpoint may hold: two students, a discriminator and its average, replayed rewards."""
    config = adversarial_config()
    config.stages = ("vae", "encode", "teacher", "distill")
    tuned = {"objectives": {"latent_reward": 0.1, "variational_score": 0.0}, "iterations": 6, "save_every": 2}
    students = {"student": {"start_from": ""}, "tuned": {"start_from": "student", "generator": tuned}}
    config.students = ConfigDict(students, sort_keys=False)
    return config
