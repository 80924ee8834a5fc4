"""Samples the videos of VBench's prompts: assigns caption and noise to each file, and resumes an interrupted job.

VBench finds the videos of a prompt by their file names, `{prompt}-{0..4}.mp4`. Models trained on long captions read a
longer version of the prompt; the file name has the short prompt.
"""

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dollar_jax.data.video import write_video
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.pipeline import Pipeline
from dollar_jax.progress import counted
from dollar_jax.reading import read_json
from dollar_jax.videos import Sample, draw, require_same, settings

VIDEOS = 5  # videos of a prompt
FLICKERING_VIDEOS = 25  # videos of a prompt for temporal flickering, which VBench measures on still videos only
NAME_BYTES = 239  # most bytes of a prompt: a file name has 255, including number, suffix and parts of a temporary name


def suite(prompts: Sequence[str], short_prompts: Sequence[str], flickering: Sequence[str] = ()) -> list[Sample]:
    """The videos that VBench needs, in the order of the prompts. A repeated short prompt counts once, the first time.

    Args:
      prompts: prompts for the model.
      short_prompts: VBench's prompts, in the same order as `prompts`.
      flickering: the short prompts for temporal flickering.

    Raises:
      UserError: the lists do not match, or a prompt cannot be a file name.
    """
    if len(prompts) != len(short_prompts):
        raise UserError(
            f"{len(prompts)} prompts but {len(short_prompts)} short ones: both lists need the same prompts in each line"
        )
    if strange := [name for name in flickering if name not in set(short_prompts)]:
        raise UserError(
            f"--flickering_prompts has {reprlib.repr(strange[0])}, which is not a short prompt ({len(strange)} such)"
        )
    samples = {}
    for number, (prompt, short) in enumerate(zip(prompts, short_prompts, strict=True)):
        if "/" in short or short[0] in ".-" or not short.isprintable() or len(short.encode()) > NAME_BYTES:
            raise UserError(
                f"short prompt {number + 1} cannot name a file: it has a / or control characters, begins with . or -,"
                f" or has more than {NAME_BYTES} bytes: {reprlib.repr(short)}; VBench's own prompts all can"
            )
        for video in range(FLICKERING_VIDEOS if short in flickering else VIDEOS):
            samples.setdefault(name := f"{short}-{video}", Sample(name, prompt, number, video))
    return list(samples.values())


def write_suite(
    folder: str | os.PathLike,
    model: Pipeline,
    samples: Sequence[Sample],
    out: Path,
    dtype: str,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 8,
) -> int:
    """Writes the manifest, which has prompt and noise of each video, then the videos that are missing in `out`.

    Args:
      folder, dtype: where and with which dtype the model was loaded.
      seed, steps, guidance, batch_size: see `videos.draw`.
    Returns:
      The number of videos written.
    Raises:
      UserError: the folder has videos of another job, or the model cannot sample with this number of steps.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: take another --out")
    claim(out, samples, settings(folder, model, dtype, seed, steps, guidance))
    out.mkdir(parents=True, exist_ok=True)
    for unfinished in out.glob(".*.mp4.*"):  # left by a killed process; VBench fails on other files
        unfinished.unlink()
    missing = {sample.name for sample in samples if not (out / f"{sample.name}.mp4").exists()}
    made = draw(model, samples, seed, steps, guidance, batch_size, only=missing)
    for sample, _, frames in counted(made, "sampling", "video", len(missing)):
        write_video(out / f"{sample.name}.mp4", frames, model.card["video"]["fps"])
    return len(missing)


def manifest_path(out: Path) -> Path:
    """The manifest is beside the folder, because VBench takes the suffix of any file in the folder for all videos."""
    out = Path(os.path.abspath(out))  # so that the current folder, ".", has a name
    return out.with_name(f"{out.name}.manifest.json")


def claim(out: Path, samples: Sequence[Sample], made_of: Mapping[str, Any]) -> None:
    """Adds prompt and noise of these samples to the manifest.

    {..., "seed": 0, "videos": {"a pear-3.mp4": {"prompt": "A single ...", "noise": [17, 3]}}}: the noise is that of
    video 3 of prompt 17, see `pipeline.draw_noise`.

    Raises:
      UserError: the folder has videos with other settings, another prompt, or without an entry in the manifest.
    """
    path = manifest_path(out)
    videos = {f"{one.name}.mp4": {"prompt": one.caption, "noise": [one.prompt, one.video]} for one in samples}
    before = _read_manifest(path) if path.exists() else made_of | {"videos": {}}
    there = before["videos"]
    if path.exists():
        require_same(out, there, {name: video for name, video in videos.items() if name in there})  # a list may grow
        require_same(out, before, made_of)
    unknown = [name for name in videos if name not in there and (out / name).exists()]
    if unknown:
        raise UserError(f"{out / unknown[0]} exists, but not in {path} ({len(unknown)} in all); take another --out")
    write_atomically(path, json.dumps(before | {"videos": there | videos}, indent=1) + "\n")


def _read_manifest(path: Path) -> dict:
    try:
        manifest = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; take another --out") from error
    if not isinstance(manifest.get("videos"), dict):
        raise UserError(f"{path} has no videos; take another --out")
    return manifest
