"""Samples teacher and students from the same prompts and noise, measures them, and writes `workdir/report`.

Each model is kept when it is measured and timed, so that a report that was stopped goes on with the next one.
"""

import hashlib
import io
import json
import os
import platform
import shlex
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax import metrics, pictures
from dollar_jax.checkpoint import digest, read_card
from dollar_jax.distributed import is_main
from dollar_jax.evaluate.measure import Clips
from dollar_jax.evaluate.report import write_report
from dollar_jax.evaluate.report_rows import DATA, DECODED, REWARD, SECONDS, TEACHER
from dollar_jax.evaluate.timing import Sampling, time_warm
from dollar_jax.files import write_atomically
from dollar_jax.pipeline import Pipeline, at_size, draw_noise, load, padded_rows
from dollar_jax.progress import counted
from dollar_jax.rewards.judge import Judge
from dollar_jax.sharding import even_batch
from dollar_jax.stages.common import (
    FITTED,
    HELD_OUT,
    MEASURED,
    encode_clips,
    has_clips,
    in_blocks,
    network_options,
    prompts,
    real_clips,
    report_metrics,
)
from dollar_jax.stages.student import teacher_folder
from dollar_jax.types import Condition

VARIETY = 5  # videos of one prompt on the page, as in Fig. 4 and 18


def report(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    """Writes the report with the metrics of `config.report.metrics`, if `report.json` is not there yet."""
    del mesh  # the current one: all devices share every batch
    folder, settings, size = workdir / "report", config.report, even_batch(config.report.batch_size)
    if (folder / "report.json").exists():
        return
    measures = report_metrics(config)
    reward = Judge(config.reward)
    captions = np.repeat(prompts(config), settings.videos_per_caption).tolist()
    teacher, condition, negative = _teacher(config, workdir, captions)
    entries = dict(_entries(config, workdir, teacher))
    noise, keys = draw_noise(
        teacher.card, HELD_OUT, len(captions) // settings.videos_per_caption, settings.videos_per_caption
    )

    def row(name: str, frames: np.ndarray, latents: np.ndarray, captions: Sequence[str]) -> dict:
        rewards = in_blocks(reward, settings.batch_size, frames, captions)
        return {
            "model": name,
            "videos": len(captions),
            **measure(Clips(frames, latents, captions)),
            "reward": float(np.mean(rewards)),
            "reward_standard_error": float(np.std(rewards) / len(rewards) ** 0.5),
        }

    def rows_of_data() -> Iterator[dict]:  # a function, so that the clips are freed before models are sampled
        real = _balanced(real_clips(config, MEASURED), settings.videos_per_caption)
        frames, latents, words = encode_clips(teacher, real, settings.batch_size)
        yield row(DATA, frames, latents, words)
        if "video" in real[0]:  # frames of encoded clips have been through the VAE
            yield row(DECODED, in_blocks(teacher.decode, size, latents), latents, words)

    if has_clips(config):
        measure = measures.fit(Clips(*encode_clips(teacher, real_clips(config, FITTED), settings.batch_size)))
        rows = list(rows_of_data())
    else:
        measure, rows = measures.fit(None), []
    clips = {}
    told, x_t, row_keys = padded_rows((condition, noise, keys), 0, size)
    spread = np.linspace(0, len(captions) - 1, settings.clips).astype(int)
    siblings = range(1, min(VARIETY, settings.videos_per_caption))  # of the first video of the first prompt
    shown = np.array([*spread, *siblings])

    def measured(name: str, entry: Sampling) -> tuple[dict, np.ndarray]:
        options = {"steps": entry.steps, "guidance": entry.guidance, "negative": negative}
        made = entry.pipeline.videos(condition, noise, keys, batch_size=size, **options)
        videos = counted(chain.from_iterable(zip(*batch, strict=True) for batch in made), name, "video", len(captions))
        latents, frames = (np.stack(part) for part in zip(*videos, strict=True))
        # The program is the one that has just made the videos.
        seconds = time_warm(entry.diffusion(told, negative, x_t, row_keys), size, settings.repeats)
        values = row(name, frames, latents, captions) | {
            "diffusion_seconds_per_video": seconds.median,
            "diffusion_seconds_per_video_std": seconds.std,
        }
        return values, frames[shown]

    kept = folder / f".measured-{_identity(config, workdir)}"
    for number, (name, entry) in enumerate(counted(entries.items(), "report", "model", len(entries))):
        values, clips[name] = _kept(kept / f"{number}.npz", partial(measured, name, entry))
        rows.append(
            values
            | {
                "objectives": sorted(entry.pipeline.card.get("objectives", {})),
                "steps": entry.steps,
                "calls": entry.calls,
            }
        )
    if not is_main():
        return
    picture = pictures.montage(
        {name: videos[: settings.clips : 3] for name, videos in clips.items()}, [captions[i] for i in spread[::3]]
    )
    write_atomically(folder / "montage.png", picture)
    stages = ["vae", "teacher", *config.students]
    write_report(
        folder,
        rows,
        [*measures.columns, REWARD, SECONDS],
        clips,
        {stage: metrics.read(workdir / stage) for stage in stages},
        {
            "title": "DOLLAR",
            "student": next(iter(config.students)),
            "captions": [captions[i] for i in shown],
            "variety": [0, *range(len(spread), len(shown))],
            "fps": config.video.fps,
            "command": shlex.join(["python", "-m", "dollar_jax.main", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
            "configs": {
                name: config[name].to_yaml() for name in ("vae", "teacher", "generator", "students") if name in config
            },
        },
    )
    for old in folder.glob(".measured-*"):  # also those of other networks or another config
        shutil.rmtree(old)
    print(f"report: {folder / 'index.html'}")


def _identity(config: ConfigDict, workdir: Path) -> str:
    """Digest of the config and of the networks that the report is about."""
    folders = teacher_folder(config, workdir), *(workdir / name for name in config.students)
    parts = config.to_yaml(), *(digest(folder, read_card(folder)["transformer"]) for folder in folders)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _kept(file: Path, measured: Callable[[], tuple[dict, np.ndarray]]) -> tuple[dict, np.ndarray]:
    """A model's values and the frames that the page shows: from `file`, or by `measured`, which is kept there."""
    if file.exists():
        with suppress(Exception), np.load(file) as kept:  # a damaged file is measured again
            return json.loads(str(kept["values"])), kept["frames"]
    values, frames = measured()
    if is_main():
        content = io.BytesIO()
        np.savez(content, values=json.dumps(values), frames=frames)
        write_atomically(file, content.getvalue())
    return values, frames


def _teacher(config: ConfigDict, workdir: Path, captions: Sequence[str]) -> tuple[Pipeline, Condition, Condition]:
    """The teacher, for videos of the run's size, and the conditions of the captions and of its negative prompt.

    The text encoder, the largest network, does its work and is freed before the others are loaded. It computes in
    float32, as for the prompts of training.
    """
    folder = teacher_folder(config, workdir)
    encoder = load(folder, ("text_encoder",))
    conditions = encoder.encode_text(captions), encoder.negative
    del encoder
    model = load(folder, ("transformer", "vae"), **network_options(config))
    return replace(model, card=at_size(model.card, config.video.to_dict())), *conditions


def _entries(config: ConfigDict, workdir: Path, teacher: Pipeline) -> Iterator[tuple[str, Sampling]]:
    """Name and sampling of each row: the teacher, also at a student's steps, by `report.teacher_samplers` and with
    `report.teacher_guidance`; the students, and the first, or with `report.fewer_steps_of_all` each, also at those of
    `report.fewer_steps` that it takes. They share the teacher's VAE, and its transformer as the base of adapters.
    """
    _, params = teacher.networks["transformer"]
    students, bases = {}, {digest(teacher_folder(config, workdir), teacher.card["transformer"]): params}
    for name in config.students:
        model = load(workdir / name, ("transformer",), bases=bases, **network_options(config))
        students[name] = replace(model, networks=teacher.networks | model.networks)
    yield TEACHER, _sampling(teacher, len(teacher.card["times"]))
    first = next(iter(students))
    own = len(students[first].card["times"])
    yield f"{TEACHER}, {own} steps", _sampling(teacher, own)
    for sampler, steps in config.report.get("teacher_samplers", ()):
        other = replace(teacher, card=teacher.card | {"sampler": sampler})
        yield f"{TEACHER}, {sampler}, {steps} steps", _sampling(other, steps)
    for guidance in config.report.get("teacher_guidance", ()):
        yield f"{TEACHER}, guidance {guidance:g}", Sampling(teacher, len(teacher.card["times"]), guidance)
    for name, student in students.items():
        yield name, _sampling(student, len(student.card["times"]))
    for name in students if config.report.fewer_steps_of_all else (first,):
        for steps in filter(students[name].takes, config.report.fewer_steps):
            yield f"{name}, {steps} step{'s' * (steps > 1)}", _sampling(students[name], steps)


def _sampling(model: Pipeline, steps: int) -> Sampling:
    return Sampling(model, steps, model.guidance)


def _balanced(clips: Sequence[dict], count: int) -> list[dict]:
    """`count` clips of every caption with so many, because the Vendi score grows with the number of clips.

    If most captions have fewer, as in data with a caption of its own for each video, all clips: they have no Vendi
    score, and the other metrics take any clips.
    """
    groups = defaultdict(list)
    for clip in clips:
        groups[clip["caption"]].append(clip)
    full = [group[:count] for group in groups.values() if len(group) >= count]
    return [clip for group in full for clip in group] if 2 * len(full) >= len(groups) else list(clips)
