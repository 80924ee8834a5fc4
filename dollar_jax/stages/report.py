"""Samples teacher and students on the same prompts and noise, measures them and writes `workdir/report`."""

import os
import platform
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from dollar_jax import metrics, pictures
from dollar_jax.data.shapes import CAPTIONS
from dollar_jax.distributed import is_main
from dollar_jax.evaluate.report import DATA, TEACHER, write_report
from dollar_jax.evaluate.timing import network_calls, time_samplers
from dollar_jax.files import write_atomically
from dollar_jax.importing import resolve
from dollar_jax.pipeline import Pipeline, draw_noise, load
from dollar_jax.stages.common import HELD_OUT, held_out_source
from dollar_jax.stages.distill import teacher_folder


@dataclass(frozen=True)
class Entry:
    """A row of the report: a model at a number of steps."""

    name: str
    pipeline: Pipeline
    steps: int

    @property
    def calls(self) -> int:
        return network_calls(self.steps, self.pipeline.card["guidance"])


def report(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    """`index.html` and `report.json`; what the numbers are says `dollar_jax.evaluate.shapes`."""
    del mesh  # the current one: all devices share every batch
    folder, settings = workdir / "report", config.report
    if (folder / "report.json").exists():
        return
    reference, measure = (resolve(f"{settings.measures}:{part}", "") for part in ("reference", "measure"))
    reward = partial(resolve(config.reward.name, "dollar_jax.rewards"), **config.reward.options)
    captions = np.repeat(_captions(config), settings.videos_per_caption).tolist()
    entries = list(_entries(config, workdir))
    teacher = entries[0].pipeline
    noise, keys = draw_noise(
        teacher.card, HELD_OUT, len(captions) // settings.videos_per_caption, settings.videos_per_caption
    )
    text, _ = teacher.encode_text(captions)

    def row(name: str, frames: np.ndarray, latents: np.ndarray, captions: Sequence[str]) -> dict:
        values = frames / np.float32(255)
        rewards = reward(values, captions)
        return {
            "model": name,
            "videos": len(captions),
            **measure(values, latents, captions, known),
            "reward": float(np.mean(rewards)),
            "reward_standard_error": float(np.std(rewards) / len(rewards) ** 0.5),
        }

    real = held_out_source(config)
    real = [real[i] for i in range(min(2 * settings.reference_clips, len(real)))]
    real = [clip for clip in real if _shape(clip) == _shape(real[0])]  # a user's data may hold images too
    frames, *rest = _encoded(teacher, real[::2])
    known = reference(frames / np.float32(255), *rest)
    rows, clips = [row(DATA, *_encoded(teacher, _balanced(real[1::2], settings.videos_per_caption)))], {}
    seconds = time_samplers(
        {entry.name: _timed(entry, noise, text, keys, settings.batch_size) for entry in entries},
        settings.batch_size,
        settings.repeats,
    )
    shown = np.linspace(0, len(captions) - 1, settings.clips).astype(int)
    for entry in tqdm(entries, desc="report", unit="model", disable=None):
        parts = entry.pipeline.generate(text, noise, keys, entry.steps, batch_size=settings.batch_size)
        parts = [(latents, entry.pipeline.decode(latents)) for latents in parts]
        latents, frames = (np.concatenate(part) for part in zip(*parts, strict=True))
        clips[entry.name] = frames[shown]
        rows.append(
            row(entry.name, frames, latents, captions)
            | {
                "objectives": sorted(entry.pipeline.card.get("objectives", {})),
                "steps": entry.steps,
                "calls": entry.calls,
                "diffusion_seconds_per_video": seconds[entry.name].median,
                "diffusion_seconds_per_video_std": seconds[entry.name].std,
            }
        )
    if not is_main():
        return
    stages = ["vae", "teacher", *config.students]
    write_report(
        folder,
        rows,
        clips,
        {stage: metrics.read(workdir / stage) for stage in stages},
        {
            "title": "DOLLAR",
            "student": next(iter(config.students)),
            "captions": [captions[i] for i in shown],
            "fps": config.video.fps,
            "command": shlex.join(["python", "-m", "dollar_jax.main", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
            "configs": {
                name: config[name].to_yaml() for name in ("vae", "teacher", "generator", "students") if name in config
            },
        },
    )
    picture = pictures.montage({name: videos[::3] for name, videos in clips.items()}, [captions[i] for i in shown[::3]])
    write_atomically(folder / "montage.png", picture)
    print(f"report: {folder / 'index.html'}")


def _entries(config: ConfigDict, workdir: Path) -> Iterator[Entry]:
    """The teacher at its own steps and at a student's, the students at theirs, the first one at fewer too."""
    teacher = load(teacher_folder(config, workdir))
    students = {name: load(workdir / name) for name in config.students}
    yield Entry(TEACHER, teacher, len(teacher.card["times"]))
    first = next(iter(students))
    own = len(students[first].card["times"])
    yield Entry(f"{TEACHER}, {own} steps", teacher, own)
    for name, student in students.items():
        yield Entry(name, student, len(student.card["times"]))
    for steps in config.report.fewer_steps:
        yield Entry(f"{first}, {steps} step{'s' * (steps > 1)}", students[first], steps)


def _captions(config: ConfigDict) -> list[str]:
    """Those of the shapes world, or the first different ones of the user's data."""
    if not config.data.path:
        return list(CAPTIONS)
    source = held_out_source(config)
    return list(dict.fromkeys(source[i]["caption"] for i in range(len(source))))[: config.report.captions]


def _balanced(clips: Sequence[dict], count: int) -> list[dict]:
    """`count` clips of every caption that has so many; one of each where none has."""
    groups = defaultdict(list)
    for clip in clips:
        groups[clip["caption"]].append(clip)
    count = min(count, max(map(len, groups.values())))
    return [clip for group in groups.values() if len(group) >= count for clip in group[:count]]


def _shape(clip: dict) -> tuple[int, ...]:
    return clip["latents" if "latents" in clip else "video"].shape


def _encoded(model: Pipeline, clips: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Frames, latents and captions of real clips; of those stored as latents the frames that these decode to."""
    given, convert = ("latents", model.decode) if "latents" in clips[0] else ("video", model.encode_video)
    values = np.stack([clip[given] for clip in clips])
    made = np.concatenate([convert(values[i : i + 32]) for i in range(0, len(values), 32)])
    frames, latents = (made, values) if given == "latents" else (values, made)
    return frames, latents, [clip["caption"] for clip in clips]


def _timed(entry: Entry, noise, text, keys, batch_size: int) -> Callable[[], jax.Array]:
    """A sampler of one batch whose inputs lie ready on the device."""
    inputs = jax.device_put((noise[:batch_size], text[:batch_size], entry.pipeline.encode_text([""])[0]))
    params = jax.device_put(entry.pipeline.networks["transformer"][1])
    times, guidance = entry.pipeline.times(entry.steps), entry.pipeline.card["guidance"]
    return lambda: entry.pipeline.sampler(params, *inputs, keys[:batch_size], times=times, guidance=guidance)
