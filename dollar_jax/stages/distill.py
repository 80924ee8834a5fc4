"""Distils the teacher into the students that the config names, each into `workdir/{name}`."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax import diffusion
from dollar_jax.card import Card
from dollar_jax.checkpoint import bring, load_component, read_card, write_card
from dollar_jax.errors import UserError
from dollar_jax.importing import resolve
from dollar_jax.models import build
from dollar_jax.models.network import Network
from dollar_jax.pipeline import Pipeline, at_size
from dollar_jax.rewards.judge import Judge
from dollar_jax.sharding import batch_sharding, batch_shares, check_batch, local_rows, shard, thin
from dollar_jax.stages.common import (
    encode_clips,
    encoded_source,
    host_batches,
    network_options,
    open_view,
    prompts,
    real_clips,
)
from dollar_jax.stages.held_out import make_measure
from dollar_jax.steps import dollar
from dollar_jax.steps.reward import PROMPTS, Replay, make_reward_step
from dollar_jax.train import compile_step, finished, initialize, place, train

TUNING = "latent_reward"  # the objective that takes a step of its own where the config wants that
ENOUGH = 8  # clips, to see whether a reward reads their captions


def teacher_folder(config: ConfigDict, workdir: Path) -> Path:
    """Where the teacher is: the user's own, or the one trained in this run."""
    if not config.teacher.path and "teacher" not in config.stages:
        raise UserError("there is no teacher: set --config.teacher.path=FOLDER")
    return Path(config.teacher.path) if config.teacher.path else workdir / "teacher"


def student_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config with the student's own changes to `generator` and `reward`; the latent model learns from no more
    captions than a batch has.
    """
    config = config.copy_and_resolve_references()
    for named in (config.generator.objectives, config.generator.options, config.reward.options, config.reward.network):
        named.unlock()  # other objectives have other names; all other fields must exist
    for part in ("generator", "reward"):
        config[part].update(config.students[name].get(part, {}))
    config.reward.batch_size = min(config.reward.batch_size, config.generator.batch_size)
    return config


def distill(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    """Alg. 1 for every student of `config.students`, in their order there."""
    for name in config.students:
        _distill(name, student_config(config, name), workdir, mesh)


def make_setup(config: ConfigDict, card: Card, network: Network, text_shape: tuple[int, int]) -> dollar.Distillation:
    """What the steps need to know of a student's config, of the teacher's card and network, and of text's [l d].

    Raises:
      UserError: a replay or a text width that does not fit, or what making the schedule and the networks raises.
    """
    reward, schedule = config.reward, diffusion.make_schedule(**card["schedule"])
    diffusion.check_prediction_type(card["prediction_type"], schedule)
    if "text_width" in reward.network:
        raise UserError("reward.network.text_width is the teacher's: leave it out, and set reward.reads_captions")
    text_width = {"text_width": text_shape[1]} if reward.reads_captions else {}

    def empty_replay():
        if not reward.replay:
            return None
        if reward.replay % (2 * reward.batch_size):
            raise UserError(
                f"reward.replay={reward.replay} must be a multiple of the {2 * reward.batch_size} videos that"
                f" reward.batch_size={reward.batch_size} captions give"
            )
        latent_shape = tuple(at_size(card, config.video.to_dict())["latent_shape"])
        return Replay.empty(reward.replay, latent_shape, text_shape)

    return dollar.Distillation(
        network=network,
        reward_network=build(reward.architecture, reward.network.to_dict() | text_width),
        prediction_type=card["prediction_type"],
        schedule=schedule,
        config=config,
        empty_replay=empty_replay,
    )


def make_steps(setup: dollar.Distillation, state: dollar.DollarState, mesh: Mesh) -> dict[str, Callable]:
    """The jitted functions of an iteration; `state` may be abstract.

    `propose` and `trajectory` are (state, batch, key) -> what is to be scored, the others (state, frozen, batch, key)
    -> (state, metrics). `finetune` is the step of its own for the latent reward (Alg. 1, line 19), where it is wanted.
    """
    objectives, alone = setup.config.generator.objectives, setup.config.reward.step == "separate"
    names = [name for name in objectives if not (alone and name == TUNING)]
    spread = batch_sharding(mesh)
    return {
        "generator": compile_step(dollar.make_generator_step(setup, names), state, mesh),
        "fake_score": compile_step(dollar.make_fake_score_step(setup), state, mesh),
        "propose": jax.jit(dollar.make_proposal(setup), out_shardings=spread),
        "reward": compile_step(make_reward_step(setup.reward_network, setup.optimizer("reward")), state, mesh),
        "finetune": compile_step(dollar.make_generator_step(setup, [TUNING]), state, mesh),
        "trajectory": jax.jit(dollar.make_trajectory(setup), out_shardings=spread),
    }


def needs_of(generator: ConfigDict) -> set[str]:
    """What the objectives in use need done for them, see `dollar_jax.objectives`."""
    used = [resolve(name, "dollar_jax.objectives") for name, weight in generator.objectives.items() if weight]
    return {need for objective in used for need in getattr(objective, "needs", ("fake_score",))}


def _distill(name: str, config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    source, folder, generator = teacher_folder(config, workdir), workdir / name, config.generator
    reward, needs = config.reward, needs_of(generator)
    if reward.step not in ("joint", "separate"):
        raise UserError(f"reward.step is joint or separate, not {reward.step!r}")
    if reward.step == "separate" and not any(w for n, w in generator.objectives.items() if n != TUNING):
        raise UserError(f"reward.step=separate needs an objective beside {TUNING}: give one a weight")
    if "reward_model" in needs:
        check_batch(reward.batch_size, mesh)
    else:
        reward.pretrain = 0
    if not needs - {"fake_score"} or not config.held_out.videos_per_caption:
        generator.guard.metric = ""  # no reward to go too far for, or nothing to see it by
    loop = generator.copy_and_resolve_references()
    loop.iterations += reward.pretrain
    loop.guard.patience += reward.pretrain // loop.save_every  # meanwhile the student cannot become better
    if finished(folder, loop):
        return
    teacher_card = read_card(source)
    network, teacher = load_component(source, teacher_card["transformer"], **network_options(config))
    card = at_size(teacher_card | bring(teacher_card, source, folder), config.video.to_dict()) | {
        "role": "student",
        "objectives": {objective: weight for objective, weight in generator.objectives.items() if weight},
        "transformer": teacher_card["transformer"] | {"path": "checkpoints", "item": "ema"},
        "prediction_type": "x0" if generator.heterogeneous else teacher_card["prediction_type"],
        "times": list(generator.times),
        "sampler": generator.sampler,
        "guidance": generator.guidance,
    }
    # Each update of the fake score has a batch of its own, as in DMD2.
    hands = 1 + config.fake_score.updates * ("fake_score" in needs)
    drawn = host_batches(encoded_source(config, workdir), generator, config.seed, mesh, hands)
    judge = Judge(reward) if needs - {"fake_score"} else None
    captions = np.repeat(prompts(config), config.held_out.videos_per_caption).tolist()
    write_card(folder, card)
    view = open_view(folder, card, network, config, mesh, captions)
    frozen = {"teacher": teacher, "null_text": view.null_text}
    setup = make_setup(config, teacher_card, network, view.null_text.shape[1:])
    learns = "reward_model" in needs
    if learns and not reward.reads_captions and _reads_captions(judge, config, view.pipeline):
        raise UserError(f"reward {reward.name} reads captions, the latent model would not: set reward.reads_captions")
    if "pixel_reward" in needs:
        judge.prepare(config.show_captions[:1])  # refused now, not at the first step
        setup = replace(setup, decode=view.pipeline.decoder, pixel_reward=judge.score)
        weights = jax.device_put(jax.tree.map(np.asarray, judge.params), shard(judge.params, mesh))
        frozen |= {"vae": view.pipeline.networks["vae"][1], "reward": weights}

    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    state = initialize(setup.init, mesh, teacher, jax.random.fold_in(key, 0), offload=config.offload)
    if start := config.students[name].start_from:
        state = _start_from(workdir / start, state)
    # The frozen copy in the dtype of the computation: it would be cast to it at every use.
    frozen["teacher"] = jax.tree.map(lambda x: x.astype(config.dtype), teacher)
    steps = make_steps(setup, state, mesh)
    update = _make_update(config, needs, hands, steps, frozen, judge, view.pipeline, mesh, key)
    measure, shown = make_measure(setup, config, view, judge, captions, mesh, needs) if captions else (None, ())
    verdict = train(folder, state, update, drawn, loop, mesh, view.show, measure, shown)
    if verdict.best is not None:
        write_card(folder, card | {"transformer": card["transformer"] | {"path": f"checkpoints/{verdict.best}"}})


def _reads_captions(judge: Judge, config: ConfigDict, pipeline: Pipeline) -> bool:
    """Whether the reward of real clips changes when their captions change places."""
    few = config.copy_and_resolve_references()
    few.report.reference_clips = ENOUGH // 2
    frames, _, captions = encode_clips(pipeline, real_clips(few))
    first, again, swapped = (judge(frames, order) for order in (captions, captions, captions[::-1]))
    return np.array_equal(first, again) and not np.array_equal(first, swapped)  # one that is random does not tell


def _make_update(
    config: ConfigDict,
    needs: set[str],
    hands: int,
    steps: dict[str, Callable],
    frozen: dict,
    judge: Judge | None,
    view: Pipeline,
    mesh: Mesh,
    key: jax.Array,
) -> Callable:
    """An iteration (Alg. 1), for `train`: (state, batch, captions, number) -> (state, metrics). The batch is `hands`
    batches in one: the first is the generator's and the reward model's, the others the fake score's.
    """
    generator, reward = config.generator, config.reward
    deal = jax.jit(partial(dollar.deal, hands=hands), out_shardings=batch_sharding(mesh))

    def update(state, batch, captions, number):
        # Every update draws from a stream of its own: all of them see the same `state.step`.
        (batch, *others), captions = deal(batch), captions[::hands]
        if number < reward.pretrain:
            return learn(state, batch, captions, number)
        extra = {}
        if "trajectory" in needs:
            walked = steps["trajectory"](state, batch, jax.random.fold_in(key, 2))
            prompt = np.array([zlib.crc32(caption.encode()) % PROMPTS for caption in captions], np.int32)
            extra |= {"trajectory": walked["trajectory"], "reward": score(walked["latents"], captions)}
            extra |= place({"prompt": prompt}, mesh)
        if "pixel_reward" in needs:
            extra["prepared"] = place(judge.prepare(captions), mesh)
        state, metrics = steps["generator"](state, frozen, batch | extra, jax.random.fold_in(key, 1))
        if "fake_score" in needs:
            skipped = []
            for index, other in enumerate(others):
                state, extra = steps["fake_score"](state, {}, other, jax.random.fold_in(key, 3 + index))
                metrics |= extra
                skipped.append(extra["skipped/fake_score"])
            metrics["skipped/fake_score"] = jnp.stack(skipped).max()
        if "reward_model" in needs and reward.concurrent:
            state, extra = learn(state, batch, captions, number)
            metrics |= extra
        if "reward_model" in needs and reward.step == "separate":
            state, extra = steps["finetune"](state, frozen, batch, jax.random.fold_in(key, 1))
            together = {name: metrics[name] + extra[name] for name in ("loss", "skipped/student")}
            metrics |= extra | together
        return state, metrics

    def learn(state, batch, captions, number):
        """The latent reward model's update, on fresh samples."""
        stream = jax.random.fold_in(jax.random.fold_in(key, 2), number)
        shares, count = batch_shares(mesh), reward.batch_size
        local = shares * len(captions) // generator.batch_size
        batch = jax.tree.map(lambda x: thin(x, shares, count), batch)
        captions = np.repeat(thin(np.array(captions), local, count * local // shares), 2).tolist()
        proposed = steps["propose"](state, batch, stream)
        return steps["reward"](state, {}, proposed | {"reward": score(proposed["latents"], captions)}, stream)

    def score(latents, captions):
        """The true reward [b] on the mesh (line 17): each process decodes and scores its own devices' videos."""
        return place({"reward": judge(local_rows(view.decode_on_devices(latents)), captions)}, mesh)["reward"]

    return update


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
