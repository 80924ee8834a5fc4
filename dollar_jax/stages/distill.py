"""Distils the teacher into the students that the config names, each into `workdir/{name}`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax import diffusion
from dollar_jax.checkpoint import Card, load_component, read_card, relocate, write_card
from dollar_jax.importing import UserError, resolve
from dollar_jax.models import build
from dollar_jax.models.network import Network
from dollar_jax.pipeline import Pipeline, at_size
from dollar_jax.sharding import batch_sharding, batch_shares, check_batch, local_rows, thin
from dollar_jax.stages.common import encoded_source, host_batches, network_options, sampler_view
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


def make_setup(config: ConfigDict, card: Card, network: Network) -> dollar.Distillation:
    """What the steps need to know of a student's config and of the teacher's card and network."""
    return dollar.Distillation(
        network=network,
        reward_network=build(config.reward.architecture, config.reward.network.to_dict()),
        velocity=card["velocity"],
        schedule=diffusion.make_schedule(**card["schedule"]),
        config=config,
    )


def make_steps(setup: dollar.Distillation, state: dollar.DollarState, mesh: Mesh) -> dict[str, Callable]:
    """The jitted functions of an iteration; `state` may be abstract.

    `propose` is (state, batch, key) -> latents, the others (state, frozen, batch, key) -> (state, metrics).
    """
    return {
        "generator": compile_step(dollar.make_generator_step(setup), state, mesh),
        "fake_score": compile_step(dollar.make_fake_score_step(setup), state, mesh),
        "propose": jax.jit(dollar.make_proposal(setup), out_shardings=batch_sharding(mesh)),
        "reward": compile_step(dollar.make_reward_step(setup), state, mesh),
    }


def _distill(name: str, config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    source, folder, generator = teacher_folder(config, workdir), workdir / name, config.generator
    teacher_card = read_card(source)
    network, teacher = load_component(source, teacher_card["transformer"], **network_options(config))
    setup = make_setup(config, teacher_card, network)
    card = at_size(relocate(teacher_card, source, folder), config.video.to_dict()) | {
        "role": "student",
        "objectives": {objective: weight for objective, weight in generator.objectives.items() if weight},
        "transformer": teacher_card["transformer"] | {"path": "checkpoints", "item": "ema"},
        "velocity": setup.student_velocity,
        "times": list(generator.times),
        "sampler": generator.sampler,
        "guidance": 0.0,
    }
    batches = host_batches(encoded_source(config, workdir), generator, config.seed, mesh)
    write_card(folder, card)

    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    state = initialize(setup.init, mesh, teacher, jax.random.fold_in(key, 0), offload=config.offload)
    if start := config.students[name].start_from:
        state = _start_from(workdir / start, state)
    # The frozen copy in the dtype of the computation: it would be cast to it at every use.
    teacher = jax.tree.map(lambda x: x.astype(config.dtype), teacher)
    view, show, null_text = sampler_view(folder, card, network, config, mesh)
    frozen = {"teacher": teacher, "null_text": null_text}
    steps = make_steps(setup, state, mesh)
    score = _reward(config.reward, view, mesh) if generator.objectives.get("latent_reward") else None

    def update(state, batch, captions):
        # Every update draws from a stream of its own: all of them see the same `state.step`.
        state, metrics = steps["generator"](state, frozen, batch, jax.random.fold_in(key, 1))
        skipped = []
        for index in range(config.fake_score.updates):
            state, extra = steps["fake_score"](state, {}, batch, jax.random.fold_in(key, 3 + index))
            metrics |= extra
            skipped.append(extra["skipped/fake_score"])
        metrics["skipped/fake_score"] = jnp.stack(skipped).max()
        if score:
            shares, count = batch_shares(mesh), min(config.reward.batch_size, generator.batch_size)
            local = shares * len(captions) // generator.batch_size
            batch = jax.tree.map(lambda x: thin(x, shares, count), batch)
            captions = thin(np.array(captions), local, count * local // shares).tolist()
            latents = steps["propose"](state, batch, jax.random.fold_in(key, 2))
            scored = batch | {"latents": latents, "reward": score(latents, captions)}
            state, extra = steps["reward"](state, {}, scored, jax.random.fold_in(key, 2))
            metrics |= extra
        return state, metrics

    train(folder, state, update, batches, generator, mesh, show)


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


def _reward(config: ConfigDict, view: Pipeline, mesh: Mesh) -> Callable[[jax.Array, list[str]], jax.Array]:
    """(latents on the mesh, captions of this process's rows) -> the true reward [b] on the mesh (Alg. 1, line 17).

    Each process decodes and scores the videos of its own devices, on its host.
    """
    check_batch(config.batch_size, mesh)
    reward = partial(resolve(config.name, "dollar_jax.rewards"), **config.options)

    def score(latents, captions):
        frames = local_rows(view.decode_on_devices(latents))
        values = np.asarray(reward(frames / np.float32(255), captions), np.float32)
        if values.shape != (len(frames),) or not np.isfinite(values).all():
            raise UserError(f"reward {config.name}: wanted {len(frames)} finite numbers, got {values}")
        return place({"reward": values}, mesh)["reward"]

    return score
