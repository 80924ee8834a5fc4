"""VBench's prompts as a sampling job: which caption and which noise go into which file, begun once and gone on with.

VBench finds the videos of a prompt by their names, `{prompt}-{0..4}.mp4`. Models that were trained on long captions
read a longer version of the prompt; the name is that of the short one.
"""

import hashlib
import json
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from dollar_jax.data.video import write_video
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.pipeline import Pipeline
from dollar_jax.reading import read_json
from dollar_jax.videos import Sample, draw

VIDEOS = 5  # of a prompt
FLICKERING_VIDEOS = 25  # of one of temporal flickering: VBench measures it only where nothing moves
NAME_BYTES = 239  # that leave room, in the 255 of a file's name, for number, suffix and what a file in writing has more


def suite(prompts: Sequence[str], short_prompts: Sequence[str], flickering: Sequence[str] = ()) -> list[Sample]:
    """The videos that VBench wants, in the order of the prompts; of a short prompt that stands there twice, the first.

    Args:
      prompts: what the model reads.
      short_prompts: VBench's own, line by line those of `prompts`.
      flickering: the short prompts of temporal flickering.

    Raises:
      UserError: lists that do not match, or a prompt that cannot be the name of a file.
    """
    if len(prompts) != len(short_prompts):
        raise UserError(
            f"{len(prompts)} prompts but {len(short_prompts)} short ones: line by line they must be the same ones"
        )
    if strange := [name for name in flickering if name not in set(short_prompts)]:
        raise UserError(
            f"--flickering_prompts has {reprlib.repr(strange[0])}, which is no short prompt ({len(strange)} such)"
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
    model: Pipeline,
    samples: Sequence[Sample],
    out: Path,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 8,
) -> int:
    """Writes the videos that `out` lacks, and before the first one the manifest, which says what makes each of them.

    Returns:
      How many it wrote.
    Raises:
      UserError: the folder's videos are of another job, or the model cannot take so many steps.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: take another --out")
    claim(out, samples, settings(model, seed, steps, guidance))
    out.mkdir(parents=True, exist_ok=True)
    for unfinished in out.glob(".*.mp4.*"):  # of a process that was killed; VBench stumbles over other files
        unfinished.unlink()
    missing = [sample for sample in samples if not (out / f"{sample.name}.mp4").exists()]
    made = draw(model, missing, seed, steps, guidance, batch_size)
    for sample, _, frames in tqdm(made, desc="sampling", total=len(missing), unit="video"):
        write_video(out / f"{sample.name}.mp4", frames, model.card["video"]["fps"])
    return len(missing)


def manifest_path(out: Path) -> Path:
    """Beside the folder: VBench takes the suffix of any one file in it for that of all videos."""
    out = Path(os.path.abspath(out))  # the present folder, ".", has a name too
    return out.with_name(f"{out.name}.manifest.json")


def settings(model: Pipeline, seed: int, steps: int | None, guidance: float | None) -> dict:
    """What decides the videos of captions; the parameters by a hash."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves({name: params for name, (_, params) in model.networks.items()}):
        digest.update(np.asarray(leaf).tobytes())
    return {
        "parameters": digest.hexdigest(),
        "times": list(model.times(steps)),
        "guidance": model.card["guidance"] if guidance is None else guidance,
        "tiled": model.tiled,
        "seed": seed,
    }


def claim(out: Path, samples: Sequence[Sample], settings: dict) -> None:
    """Notes in the manifest what these samples are made of, beside those that it has already.

    {..., "seed": 0, "videos": {"a pear-3.mp4": {"prompt": "A single ...", "noise": [17, 3]}}}: its noise is that of
    video 3 of prompt 17, see `pipeline.draw_noise`.

    Raises:
      UserError: there are videos that were made with other settings, from another prompt or nobody knows how.
    """
    path = manifest_path(out)
    videos = {f"{one.name}.mp4": {"prompt": one.caption, "noise": [one.prompt, one.video]} for one in samples}
    before = _read_manifest(path) if path.exists() else settings | {"videos": {}}
    there, here = ({**job, **job["videos"]} for job in (before, settings | {"videos": videos}))
    changed = [key for key in here.keys() & there.keys() - {"videos"} if there[key] != here[key]]
    if changed:
        key = min(changed)
        raise UserError(
            f"{out} holds videos of another job: {key} is {reprlib.repr(there[key])} there, {reprlib.repr(here[key])}"
            f" here ({len(changed)} in all); take another --out"
        )
    unknown = [name for name in videos if name not in there and (out / name).exists()]
    if unknown:
        raise UserError(f"{out / unknown[0]} is there, but not in {path} ({len(unknown)} in all); take another --out")
    write_atomically(path, json.dumps(before | {"videos": before["videos"] | videos}, indent=1) + "\n")


def _read_manifest(path: Path) -> dict:
    try:
        manifest = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; take another --out") from error
    if not isinstance(manifest.get("videos"), dict):
        raise UserError(f"{path} has no videos; take another --out")
    return manifest
