"""Distils the teacher into the students of a config; student NAME goes to `workdir/NAME`."""

import zlib
from collections.abc import Callable, Sequence
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
from dollar_jax.checkpoint import load_component, load_stored, network_of, read_card, write_card
from dollar_jax.distributed import is_main
from dollar_jax.errors import UserError
from dollar_jax.models import build, roles
from dollar_jax.models.attention import FORWARD_MODE
from dollar_jax.models.flow_map import without_targets
from dollar_jax.models.network import Network, narrowed
from dollar_jax.objectives import REWARDED, group_of, needs_of, used
from dollar_jax.pipeline import Pipeline, draw_noise
from dollar_jax.rewards.judge import Judge
from dollar_jax.sharding import batch_sharding, batch_shares, check_batch, local_rows, shard, thin
from dollar_jax.stages.common import (
    encode_clips,
    encoded_source,
    has_clips,
    host_batches,
    in_blocks,
    network_options,
    open_view,
    prompts,
    prompts_alone,
    real_clips,
)
from dollar_jax.stages.held_out import make_measure
from dollar_jax.stages.student import (
    flow_map_part,
    require_same_form,
    student_card,
    student_config,
    student_schedule,
    teacher_folder,
)
from dollar_jax.steps.distillation import Distillation, DollarState
from dollar_jax.steps.dollar import split_batch
from dollar_jax.steps.iteration import PROPOSALS, Part, batches_drawn, compiled, describe, due, parts
from dollar_jax.steps.reward import PROMPTS, Replay
from dollar_jax.train import finished, initialize, place, train
from dollar_jax.types import Condition

ENOUGH = 8  # number of clips on which a reward is tested for reading captions


def distill(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    """Runs Alg. 1 for each student of `config.students` in order."""
    for name in config.students:
        _distill(name, student_config(config, name), workdir, mesh)


def make_setup(config: ConfigDict, card: Card, network: Network, condition: Condition) -> Distillation:
    """Makes the fixed part of a distillation.

    Args:
      config: config of a student, see `student_config`.
      card: card of the teacher, with the latent shape of the config's videos.
      network: network of teacher and student.
      condition: condition of one caption (b = 1), or its ShapeDtypeStructs.
    Raises:
      UserError: the times do not fit, or the schedule or a network cannot be made.
    """
    reward, schedule = config.reward, diffusion.make_schedule(**student_schedule(config, card["schedule"]))
    diffusion.check_prediction_type(card["prediction_type"], schedule)
    schedule.require(config.generator.times, "generator.times")
    text_width = {"text_width": condition.embedding.shape[-1]} if reward.reads_captions else {}
    example = jax.ShapeDtypeStruct((1, *card["latent_shape"]), jnp.float32), _shapes(condition)

    def empty_replay():
        return Replay.empty(reward.replay, *example) if reward.replay else None

    def features(depths):
        return roles.features(network, card["transformer"]["architecture"], *example, depths)

    def own_network(objective):
        shapes = (*example, features) if objective.own.reads_features else example
        return objective.own.build(*shapes, **objective.settings.get("network", {}))

    forward_mode = None
    if "forward_mode" in needs_of(used(config.generator)):
        forward_mode = _student_network(config, card, attention=FORWARD_MODE)

    reward_network = build(reward.architecture, reward.network.to_dict() | text_width)
    roles.require("reward_model", reward_network, reward.architecture, *example)
    return Distillation(
        network=network,
        reward_network=reward_network,
        prediction_type=card["prediction_type"],
        schedule=schedule,
        config=config,
        latent_shape=card["latent_shape"],
        videos=not prompts_alone(config),
        own={objective.key: own_network(objective) for objective in used(config.generator) if objective.own},
        student_network=_student_network(config, card) if config.generator.flow_map else None,
        forward_mode=forward_mode,
        empty_replay=empty_replay,
    )


def _student_network(config: ConfigDict, card: Card, **options) -> Network:
    """The student's network for a teacher with this card; `options` of `build` beside those of the config."""
    part = card["transformer"]
    if config.generator.flow_map:
        part = flow_map_part(part)
    return build(part["architecture"], part["config"], **network_options(config) | options)


def _shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _distill(name: str, config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    source, folder, generator = teacher_folder(config, workdir), workdir / name, config.generator
    reward, objectives = config.reward, used(generator)
    needs = needs_of(objectives)
    check_batch(generator.batch_size, mesh, generator.accumulate, group_of(objectives))
    if "reward_model" in needs:
        check_batch(reward.batch_size, mesh, name="reward.batch_size")
    else:
        reward.pretrain = 0
    if not needs & REWARDED or not config.held_out.videos_per_caption:
        generator.guard.metric = ""  # there is no reward to over-optimise, or no measurement
    loop = generator.copy_and_resolve_references()
    loop.iterations += reward.pretrain
    loop.guard.patience += reward.pretrain // loop.save_every  # the student does not change during pretraining
    if finished(folder, loop):
        return
    teacher_card = read_card(source)
    card = student_card(config, teacher_card, source, folder)
    network = network_of(teacher_card["transformer"], **network_options(config))
    drawn = batches_drawn(config, needs)
    batches = host_batches(encoded_source(config, workdir), generator, config.seed, mesh, drawn)
    judge = Judge(reward) if needs & REWARDED else None
    captions = np.repeat(prompts(config), config.held_out.videos_per_caption).tolist()
    write_card(folder, card)
    student = _student_network(config, teacher_card) if generator.flow_map else network
    view = open_view(folder, card, student, config, mesh, captions)
    frozen = {"negative": view.negative, "empty": view.empty}
    setup = make_setup(config, teacher_card | {"latent_shape": card["latent_shape"]}, network, view.empty)
    learns = "reward_model" in needs
    if learns and not reward.reads_captions and _reads_captions(judge, config, view.pipeline):
        raise UserError(f"reward {reward.name} reads captions, the latent model does not: set reward.reads_captions")
    if "pixel_reward" in needs:
        judge.prepare(config.show_captions[:1])  # an error appears now, not at the first step
        setup = replace(setup, decode=view.pipeline.decoder, pixel_reward=judge.score)
        weights = jax.device_put(jax.tree.map(np.asarray, judge.params), shard(judge.params, mesh))
        frozen |= {"vae": view.pipeline.networks["vae"][1], "reward": weights}

    # After the captions: the text encoder, which may be as large, is freed by now. Adapters need the teacher only as
    # their frozen base; other students begin as its weights, just as they are stored.
    keep = config.dtype if config.lora.rank else None
    _, teacher = load_component(source, teacher_card["transformer"], keep=keep, **network_options(config))
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    state = initialize(setup.init, mesh, teacher, jax.random.fold_in(key, 0), offload=config.offload)
    if start := config.students[name].start_from:
        state = _start_from(workdir / start, state, card)
    if "start" in needs:
        frozen["start"] = jax.tree.map(jnp.copy, state.student)  # the state's own arrays are donated
    # The large matrices of the frozen copy are in the dtype of the computation, which saves a cast at every use.
    dtypes = narrowed(_shapes(teacher), config.dtype)
    frozen["teacher"] = jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), teacher, dtypes)
    del teacher  # as it is stored, perhaps twice as large
    iteration = compiled(parts(setup), state, mesh)
    if is_main():
        print(f"{name}: an iteration is {describe(iteration)}", flush=True)
    update = _make_update(setup, iteration, frozen, judge, view.pipeline, mesh, key)
    measure, shown = make_measure(setup, config, view, judge, captions, mesh) if captions else (None, ())

    def sampled(function):
        """The function of a state, with its adapter on the teacher."""
        return lambda state: function(state.replace(ema=setup.whole(state.ema, frozen)))

    verdict = train(folder, state, update, batches, loop, mesh, sampled(view.show), measure and sampled(measure), shown)
    if verdict.best is not None:
        write_card(folder, card | {"transformer": card["transformer"] | {"path": f"checkpoints/{verdict.best}"}})


def _reads_captions(judge: Judge, config: ConfigDict, pipeline: Pipeline) -> bool:
    """Whether the reward of real clips changes with the order of their captions; False for a random reward.

    Where there are no real clips, of decoded noise.
    """
    few = config.copy_and_resolve_references()
    few.report.reference_clips = ENOUGH // 2
    if has_clips(config):
        frames, _, captions = encode_clips(pipeline, real_clips(few), few.report.batch_size)
    else:
        captions = prompts(config)[:ENOUGH]
        noise, _ = draw_noise(pipeline.card, config.seed, len(captions), 1)
        frames = in_blocks(pipeline.decode, few.report.batch_size, noise)
    first, again, swapped = (judge(frames, order) for order in (captions, captions, captions[::-1]))
    return np.array_equal(first, again) and not np.array_equal(first, swapped)


def _make_update(
    setup: Distillation,
    iteration: list[Part],
    frozen: dict,
    judge: Judge | None,
    view: Pipeline,
    mesh: Mesh,
    key: jax.Array,
) -> Callable:
    """Makes the update (state, batch, captions, number) -> (state, metrics) of `train`, which runs one iteration.

    The batch holds all batches of the iteration; the first is the generator's.
    """
    size, few = setup.config.generator.batch_size, setup.config.reward.batch_size
    drawn = batches_drawn(setup.config, setup.needs)
    split = jax.jit(partial(split_batch, parts=drawn), out_shardings=batch_sharding(mesh))

    def update(state, batch, captions, number):
        first, *fresh = split(batch)
        captions, metrics = captions[::drawn], {}
        for part in due(iteration, setup, number):
            for index in range(part.times):
                rows = fresh.pop(0) if part.batch == "fresh" else first
                # Every run has its own key stream, because `state.step` is the same for all of them.
                stream = part.key(key, number, index)
                words = captions
                if part.batch == "few":
                    rows, words = thin_batch(rows, captions)
                if part.propose:
                    words = np.repeat(words[:: part.group], part.group).tolist()
                    rows = part.propose(state, frozen, rows, part.key(key, number, stream=PROPOSALS))
                    rows["reward"] = score(rows.pop("scored"), words)
                    rows |= place({"prompt": prompt_numbers(words)}, mesh)
                if part.prepared:
                    rows = rows | {"prepared": place(judge.prepare(captions), mesh)}
                state, new = part.step(state, frozen, rows, stream)
                metrics = merged(metrics, new)
        return state, metrics

    def thin_batch(batch, captions):
        """The rows for the reward model, and their captions, each twice: for the clip and for the sample."""
        shares = batch_shares(mesh)
        local = shares * len(captions) // size
        batch = jax.tree.map(lambda x: thin(x, shares, few), batch)
        return batch, np.repeat(thin(np.array(captions), local, few * local // shares), 2).tolist()

    def score(latents, captions):
        """True reward [b] on the mesh (line 17); each process decodes and scores the videos on its own devices."""
        return place({"reward": judge(local_rows(view.decode_on_devices(latents)), captions)}, mesh)["reward"]

    return update


def prompt_numbers(captions: Sequence[str]) -> np.ndarray:
    """The row of each caption in `PromptMeans`, [b]."""
    return np.array([zlib.crc32(caption.encode()) % PROMPTS for caption in captions], np.int32)


def merged(metrics: dict, new: dict) -> dict:
    """Merges the metrics of another step into those of an iteration.

    Losses named `loss` are added, `skipped/NETWORK` is the maximum, and of other metrics the new value is kept.
    """
    for name in metrics.keys() & new.keys():
        if name == "loss":
            new[name] = metrics[name] + new[name]
        elif name.startswith("skipped/"):
            new[name] = jnp.maximum(metrics[name], new[name])
    return metrics | new


def _start_from(folder: Path, state: DollarState, card: Card) -> DollarState:
    """The state, of the student with this card, with student, average and fake score from another student's folder."""
    theirs = read_card(folder)
    require_same_form(folder, theirs, card)
    part = theirs["transformer"]
    student = load_stored(folder, part | {"item": "ema"})
    fake_score = load_stored(folder, part | {"item": "fake_score", "config": without_targets(part["config"])})
    place_like = partial(jax.tree.map, lambda old, new: jax.device_put(jnp.array(new), old.sharding))
    return state.replace(
        student=place_like(state.student, student),
        ema=place_like(state.ema, student),
        fake_score=place_like(state.fake_score, fake_score),
    )
