"""Distils the teacher into the students that the config names, each into `workdir/{name}`."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax import diffusion
from dollar_jax.checkpoint import load_component, read_card, relocate, write_card
from dollar_jax.importing import UserError, resolve
from dollar_jax.models import build
from dollar_jax.pipeline import at_size, load
from dollar_jax.stages.common import encoded_source, host_batches, sampler_view
from dollar_jax.steps import dollar
from dollar_jax.train import compile_step, initialize, place, train


def teacher_folder(config: ConfigDict, workdir: Path) -> Path:
    """Where the teacher is: the user's own, or the one trained in this run."""
    if not config.teacher.path and "teacher" not in config.stages:
        raise UserError("there is no teacher: set --config.teacher.path=FOLDER")
    return Path(config.teacher.path) if config.teacher.path else workdir / "teacher"


def student_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config with the student's own changes to `generator`."""
    config = config.copy_and_resolve_references()
    config.generator.update(config.students[name].generator)
    return config


def distill(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    """Alg. 1 for every student of `config.students`, in their order there."""
    for name in config.students:
        _distill(name, student_config(config, name), workdir, mesh)


def _distill(name: str, config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    source, folder, generator = teacher_folder(config, workdir), workdir / name, config.generator
    teacher_card = read_card(source)
    velocity = teacher_card["velocity"]
    network, teacher = load_component(source, teacher_card["transformer"], dtype=config.dtype, remat=config.remat)
    setup = dollar.Distillation(
        network=network,
        reward_network=build(config.reward.architecture, config.reward.network.to_dict()),
        velocity=velocity,
        schedule=diffusion.make_schedule(**teacher_card["schedule"]),
        config=config,
    )
    card = at_size(relocate(teacher_card, source, folder), config.video.to_dict()) | {
        "role": "student",
        "objectives": {objective: weight for objective, weight in generator.objectives.items() if weight},
        "transformer": teacher_card["transformer"] | {"path": "checkpoints", "item": "ema"},
        "velocity": setup.student_velocity,
        "times": list(generator.times),
        "sampler": generator.sampler,
        "guidance": 0.0,
    }
    write_card(folder, card)

    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    state = initialize(setup.init, mesh, teacher, jax.random.fold_in(key, 0))
    if start := config.students[name].start_from:
        state = _start_from(workdir / start, state)
    show, null_text = sampler_view(folder, card, network, config)
    frozen = {"teacher": teacher, "null_text": null_text}
    generator_step = compile_step(dollar.make_generator_step(setup), state, mesh)
    fake_score_step = compile_step(dollar.make_fake_score_step(setup), state, mesh)
    update_reward = _reward_update(setup, source, state, mesh) if generator.objectives.get("latent_reward") else None

    def update(state, batch, captions):
        # Every update draws from a stream of its own: all of them see the same `state.step`.
        state, metrics = generator_step(state, frozen, batch, jax.random.fold_in(key, 1))
        for index in range(config.fake_score.updates):
            state, extra = fake_score_step(state, {}, batch, jax.random.fold_in(key, 3 + index))
            metrics |= extra
        if update_reward:
            state, extra = update_reward(state, batch, captions, jax.random.fold_in(key, 2))
            metrics |= extra
        return state, metrics

    train(
        folder,
        state,
        update,
        host_batches(encoded_source(config, workdir), generator.batch_size, config.seed),
        generator,
        mesh,
        show,
    )


def _start_from(folder: Path, state: dollar.DollarState) -> dollar.DollarState:
    """The state with student and fake score of a student distilled before."""
    part = read_card(folder)["transformer"]
    student, fake_score = (load_component(folder, part | {"item": item})[1] for item in ("ema", "fake_score"))
    place_like = partial(jax.tree.map, lambda old, new: jax.device_put(jnp.array(new), old.sharding))
    return state.replace(
        student=place_like(state.student, student),
        ema=place_like(state.ema, student),
        fake_score=place_like(state.fake_score, fake_score),
    )


def _reward_update(setup: dollar.Distillation, source: Path, state: dollar.DollarState, mesh: Mesh):
    """(state, batch, captions, key) -> (state, metrics): propose, decode, score on the host, learn (Alg. 1, 15-17)."""
    config = setup.config.reward
    reward = partial(resolve(config.name, "dollar_jax.rewards"), **config.options)
    vae = load(source, parts=("vae",))
    propose = jax.jit(dollar.make_proposal(setup))
    learn = compile_step(dollar.make_reward_step(setup), state, mesh)

    def update(state, batch, captions, key):
        batch = jax.tree.map(lambda x: x[: config.batch_size], batch)
        latents = propose(state, batch, key)
        values = np.asarray(reward(vae.decode(latents) / np.float32(255), captions[: config.batch_size]), np.float32)
        if values.shape != (len(latents),) or not np.isfinite(values).all():
            raise UserError(f"reward {config.name}: wanted {len(latents)} finite numbers, got {values}")
        scored = {"latents": latents, "text": batch["text"], "text_mask": batch["text_mask"]}
        return learn(state, {}, scored | place({"reward": values}, mesh), key)

    return update
