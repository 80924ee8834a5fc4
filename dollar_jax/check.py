"""Checks a config before a run starts, so that a mistake does not surface after hours of training."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax.checkpoint import read_card
from dollar_jax.data.prompts import count_prompts
from dollar_jax.diffusion import make_schedule
from dollar_jax.distributed import is_main
from dollar_jax.errors import UserError
from dollar_jax.fields import SCHEMA
from dollar_jax.objectives import REWARDED, group_of, needs_of, used
from dollar_jax.reading import require_schema
from dollar_jax.rewards.judge import DEFAULTS, Judge
from dollar_jax.sharding import check_batch
from dollar_jax.stages.common import has_clips, held_out_source, holds_out, prompts_alone, report_metrics, video_source
from dollar_jax.stages.student import student_config, student_schedule
from dollar_jax.steps.iteration import TUNING, batches_drawn


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Checks all that needs no trained network: ranges, names, data, teacher, rewards.

    Raises:
      UserError: the first fault that is found.
    """
    students = {f"student {name}": student_config(config, name) for name in config.get("students", {})}
    for place, changed in {"the config": config, **students}.items():
        _check_ranges(changed, place)
    if (chunk := config.video.independent_chunk) and config.video.frames % chunk:
        raise UserError(
            f"config.video has {config.video.frames} frames, no multiple of independent_chunk={chunk}: set"
            " --config.video.independent_chunk=0 for a teacher that was not trained on chunks"
        )
    trained = [config[part] for part in ("vae", "teacher") if part in config.stages]
    if "distill" in config.stages:
        trained += [student.generator for student in students.values()]
    for stage in trained:
        group = group_of(used(stage)) if "objectives" in stage else 1
        check_batch(stage.batch_size, mesh, stage.accumulate, group)
    sizes = [stage.batch_size for stage in trained]
    if "distill" in config.stages:
        sizes += [_drawn(student) for student in students.values()]
    images = False
    if prompts_alone(config):
        _check_prompts(config, students if "distill" in config.stages else {}, max(sizes, default=1))
    else:
        images = _check_videos(config, max(sizes, default=1))
    watched = "distill" in config.stages and config.held_out.videos_per_caption
    if watched or "report" in config.stages:
        tuned = {place: student for place, student in students.items() if watched and _rewarded(student)}
        guards = {place: student.generator.guard for place, student in tuned.items()}
        _check_metrics(config, {place: guard for place, guard in guards.items() if guard.metric})
    if "distill" in config.stages:
        for place, student in students.items():
            _check_training(student, place, mesh)
    if {"distill", "report"} & set(config.stages):
        judges = {}
        for place, student in students.items():
            _check_student(student, place, judges, images and "distill" in config.stages)


def _check_ranges(config: ConfigDict, place: str) -> None:
    try:
        fields = json.loads(config.to_json(), parse_constant=_refuse)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error
    require_schema(fields, SCHEMA, place, "give another value")


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _drawn(student: ConfigDict) -> int:
    """Number of examples in an iteration: a batch for the generator and one for each update of the fake score."""
    return student.generator.batch_size * batches_drawn(student, needs_of(used(student.generator)))


def _rewarded(student: ConfigDict) -> bool:
    """Whether the student is tuned for a reward; else it has no guard."""
    return bool(needs_of(used(student.generator)) & REWARDED)


def _check_training(config: ConfigDict, place: str, mesh: Mesh) -> None:
    """Raises UserError if fields of a student, each of them possible, do not fit each other or the mesh."""
    generator, reward, objectives = config.generator, config.reward, used(config.generator)
    if generator.flow_map and config.lora.rank:
        raise UserError(f"{place}: generator.flow_map needs weights of its own for the second time: set lora.rank=0")
    if generator.flow_map and generator.matched_times == "trajectory":
        raise UserError(
            f'{place}: generator.flow_map: matched_times "trajectory" is for other students: take segment or all'
        )
    if reward.step == "separate" and all(objective.name == TUNING for objective in objectives):
        raise UserError(f"{place}: reward.step=separate needs an objective beside {TUNING}: give one a weight")
    if "reward_model" not in needs_of(objectives):
        return
    check_batch(reward.batch_size, mesh, name="reward.batch_size")
    if "text_width" in reward.network:
        raise UserError(
            f"{place}: reward.network.text_width is the teacher's: leave it out, and set reward.reads_captions"
        )
    if reward.replay % (2 * reward.batch_size):
        raise UserError(
            f"{place}: reward.replay={reward.replay} must be a multiple of the {2 * reward.batch_size} videos that"
            f" reward.batch_size={reward.batch_size} captions give"
        )


def _check_prompts(config: ConfigDict, students: Mapping[str, ConfigDict], batch_size: int) -> None:
    """Raises UserError if the prompts are too few, or if something needs videos beside them."""
    file, remedy = config.data.prompts, "or set config.data.path in place of config.data.prompts"
    if config.data.path:
        raise UserError("config.data has both path, for videos, and prompts, for a run without videos: leave one empty")
    if own := [stage for stage in ("vae", "teacher") if stage in config.stages]:
        raise UserError(f"the stage {own[0]} needs videos: leave it out of config.stages, {remedy}")
    if not config.teacher.path:
        raise UserError("prompts are encoded by the teacher's text encoder: set --config.teacher.path=FOLDER")
    for place, student in students.items():
        for objective in used(student.generator):
            if "videos" in objective.needs:
                raise UserError(f"{place}: {objective.name} needs videos: give it the weight 0, {remedy}")
        if student.generator.rollout == "data":
            raise UserError(f"{place}: generator.rollout=data needs videos: take simulate, {remedy}")
    if (there := count_prompts(file)) < batch_size:
        raise UserError(f"{file} has {there} prompts, too few: an iteration takes {batch_size}")


def _check_videos(config: ConfigDict, batch_size: int) -> bool:
    """Whether the data have images beside videos. Raises UserError if there are no data, or too few."""
    if not config.data.path and "clips" not in config.data:
        raise UserError("there is no data: set --config.data.path=FOLDER to a dataset of python -m dollar_jax.data")
    source = video_source(config)
    parts = getattr(source, "parts", [source])
    if (least := min(map(len, parts))) < batch_size:
        raise UserError(
            f"{least} examples are too few: an iteration takes {batch_size}; give more data or smaller batches"
        )
    return len(parts) > 1


def _check_metrics(config: ConfigDict, guards: Mapping[str, ConfigDict]) -> None:
    """Raises UserError if a metric cannot be constructed or has too few real clips, or a guard's metric is unknown."""
    metrics = report_metrics(config)
    left_out = [name for name in config.report.metrics if name not in metrics.least_clips]
    if left_out and is_main():
        print(f"not measured, because it takes real videos: {', '.join(left_out)}", flush=True)
    if config.data.path and not holds_out(config) and is_main():
        print("measured beside videos of the training: config.data.held_out is 0", flush=True)
    count = min(config.report.reference_clips, (len(held_out_source(config)) + 1) // 2) if has_clips(config) else 0
    for name, needed in metrics.least_clips.items():
        if count < needed:
            raise UserError(
                f"metric {name} needs {needed} real clips or more, there are {count}: raise"
                " report.reference_clips or data.held_out, or give more data"
            )
    columns = {column.key: column for column in metrics.columns}
    for place, guard in guards.items():
        name = guard.metric.removeprefix("-")
        if name not in columns:
            raise UserError(
                f"{place}: generator.guard.metric={guard.metric} is not measured; choose one of {', '.join(columns)}"
            )
        if guard.metric == {"higher": f"-{name}", "lower": name}.get(columns[name].better):
            raise UserError(
                f"{place}: generator.guard.metric={guard.metric}, but {columns[name].good}: a minus in front means that"
                " lower is better"
            )


def _check_student(config: ConfigDict, place: str, judges: dict[str, Judge], images: bool) -> None:
    """Checks times, form and reward of a student. Students may share a reward: it is constructed once, it may be large.

    Args:
      images: whether it learns from images beside videos, for which a reward is tried.
    """
    if config.teacher.path:
        schedule = read_card(config.teacher.path).get("schedule", {})
    else:
        schedule = config.teacher.get("schedule", ConfigDict()).to_dict()
    make_schedule(**student_schedule(config, schedule)).require(config.generator.times, f"{place}: generator.times")
    generator, needs = config.generator, needs_of(used(config.generator))
    if generator.flow_map and generator.heterogeneous:
        raise UserError(f"{place}: a flow map that predicts x0 has no velocity where b = 0: set heterogeneous=False")
    if generator.guidance and generator.rollout == "simulate":
        raise UserError(
            f"{place}: generator.guidance={generator.guidance:g} guides samples, but not the simulated rollout: set it"
            " to 0, or rollout=data"
        )
    scored = images and bool(needs & {"reward_model", "pixel_reward"})
    if scored and config.reward.replay:
        raise UserError(
            f"{place}: reward.replay={config.reward.replay} keeps videos of one length, and the data have images too:"
            " set it to 0, or leave the images out"
        )
    if needs & REWARDED or "report" in config.stages:
        reward = str([scored, *(config.reward[field] for field in ("name", *DEFAULTS))])
        if reward not in judges:
            judges[reward] = Judge(config.reward)
            if scored:
                _try_image(judges[reward], config, place)
            judges[reward].stop()
        if "pixel_reward" in needs:
            judges[reward].require_gradient()


def _try_image(judge: Judge, config: ConfigDict, place: str) -> None:
    """Raises UserError if the reward does not take a video of one frame."""
    try:
        judge(np.zeros((1, 1, config.video.height, config.video.width, 3), np.uint8), config.show_captions[:1])
    except UserError as error:
        raise UserError(f"{place}: leave images out of the data, or take another reward: {error}") from error
