"""python -m dollar_jax.sample --checkpoint=C --prompts=P.txt --out=DIR: samples videos from a teacher or a student.

It writes DIR/{prompt:05d}-{video}.mp4 for every line of P.txt; --save_latents adds latents as .npy files with the same
names, float32 [f, h, w, c]. All devices of the machine share the work. The same command again makes the videos that are
missing; DIR/sample.json notes of what they are made.
"""

import hashlib
import io
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from absl import flags

from dollar_jax.cli import required, run
from dollar_jax.data.prompts import read_prompts
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.progress import counted
from dollar_jax.solvers import SOLVERS

KINDS = ("mp4", "npy")  # of files: videos, and with --save_latents their latents

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a teacher or student, or W/STUDENT/checkpoints/STEP.")
_PROMPTS = flags.DEFINE_string("prompts", None, "Text file with one prompt per line.")
_OUT = flags.DEFINE_string("out", None, "Folder for the videos.")
_STEPS = flags.DEFINE_integer("steps", None, "Number of steps; default: the checkpoint's.", lower_bound=1)
_NUM_VIDEOS = flags.DEFINE_integer("num_videos", 1, "Number of videos per prompt.", lower_bound=1)
_GUIDANCE = flags.DEFINE_float("guidance", None, "The paper's w, diffusers' scale minus 1; default: the checkpoint's.")
_NEGATIVE_PROMPT = flags.DEFINE_string(
    "negative_prompt", None, "The prompt that guidance moves away from; default: the checkpoint's."
)
_SAMPLER = flags.DEFINE_enum("sampler", None, list(SOLVERS), "Solver; default: the checkpoint's.")
_SHIFT = flags.DEFINE_float("shift", None, "Shift of a flow's noise levels; default: the checkpoint's.")
_LORA_SCALE = flags.DEFINE_float("lora_scale", None, "Strength of a student's adapter; default: 1, 0 is its teacher.")
_SIZE = flags.DEFINE_string("size", None, "FRAMESxHEIGHTxWIDTH of the videos, 81x480x832; default: the checkpoint's.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")
_NOISE = flags.DEFINE_string("noise", None, "Initial noise, a float32 .npy file [prompts * videos, f, h, w, c].")
_SAVE_LATENTS = flags.DEFINE_bool("save_latents", False, "Write the latents beside each video.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float32"],
    "dtype of transformer and text encoder, computation and large weights; default: bfloat16, on CPUs float32.",
)
_TILED = flags.DEFINE_bool("tiled", False, "Decode in overlapping tiles, which needs the memory of one tile.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Number of videos in a batch, rounded up to a multiple of the devices.", lower_bound=1
)


def main() -> None:
    required(_CHECKPOINT, _PROMPTS, _OUT)
    prompts = read_prompts(_PROMPTS.value)

    import jax  # late: a wrong call is refused before JAX starts

    from dollar_jax.compiling import keep_programs
    from dollar_jax.sharding import local_mesh

    keep_programs()
    with jax.set_mesh(local_mesh()):
        _sample(prompts)


def _sample(prompts: Sequence[str]) -> None:
    """Makes the videos that are missing."""
    import jax

    from dollar_jax import pipeline
    from dollar_jax.data.video import write_video
    from dollar_jax.videos import Sample, claim, draw, read_noise, settings

    dtype = _DTYPE.value or pipeline.usual_dtype()
    model = pipeline.load(_CHECKPOINT.value, tiled=_TILED.value, lora_scale=_LORA_SCALE.value, dtype=dtype)
    card = pipeline.with_solver(model.card, _SAMPLER.value, _SHIFT.value)
    if _SIZE.value:
        card = pipeline.at_size(card, card["video"] | _size(_SIZE.value))
    model = replace(model, card=card)
    samples = [
        Sample(f"{prompt:05d}-{video}", caption, prompt, video)
        for prompt, caption in enumerate(prompts)
        for video in range(_NUM_VIDEOS.value)
    ]
    noise = read_noise(_NOISE.value, (len(samples), *model.card["latent_shape"])) if _NOISE.value else None

    out, start = Path(_OUT.value), time.perf_counter()
    size, negative_prompt = _BATCH_SIZE.value, _NEGATIVE_PROMPT.value
    how = dtype, _SEED.value, _STEPS.value, _GUIDANCE.value, negative_prompt
    made_of = settings(_CHECKPOINT.value, model, *how) | {
        "lora_scale": 1.0 if _LORA_SCALE.value is None else _LORA_SCALE.value,
        "noise": None if noise is None else hashlib.sha256(noise.tobytes()).hexdigest(),
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
    }
    out.mkdir(parents=True, exist_ok=True)
    claim(out, made_of)
    for unfinished in (path for kind in KINDS for path in out.glob(f".*.{kind}.*")):  # left by a killed process
        unfinished.unlink()
    kinds = KINDS if _SAVE_LATENTS.value else KINDS[:1]
    missing = {one.name for one in samples if not all((out / f"{one.name}.{kind}").exists() for kind in kinds)}
    made = draw(model, samples, _SEED.value, _STEPS.value, _GUIDANCE.value, size, noise, negative_prompt, missing)
    for sample, latent, frames in counted(made, "sampling", "video", len(missing)):
        if _SAVE_LATENTS.value:
            buffer = io.BytesIO()
            np.save(buffer, latent)
            write_atomically(out / f"{sample.name}.npy", buffer.getvalue())
        write_video(out / f"{sample.name}.mp4", frames, model.card["video"]["fps"])
    devices = jax.local_device_count()
    print(
        f"{len(samples)} videos in {out}, {len(missing)} of them new, {time.perf_counter() - start:.1f} s on"
        f" {devices} device{'s' * (devices > 1)}"
    )


def _size(text: str) -> dict[str, int]:
    """{frames, height, width} of "81x480x832"."""
    if not (match := re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text)):
        raise UserError(f"--size={text}: give FRAMESxHEIGHTxWIDTH, 81x480x832 for example")
    return dict(zip(("frames", "height", "width"), map(int, match.groups()), strict=True))


if __name__ == "__main__":
    run(main)
