"""python -m dollar_jax.sample --checkpoint=C --prompts=P.txt --out=DIR: samples videos from a teacher or a student.

It writes DIR/{prompt:05d}-{video}.mp4 for every line of P.txt; --save_latents adds latents as .npy files with the same
names, float32 [f, h, w, c].
"""

import io
import re
import time
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
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Number of videos in a batch.", lower_bound=1)


def main() -> None:
    required(_CHECKPOINT, _PROMPTS, _OUT)
    prompts = read_prompts(_PROMPTS.value)

    from dollar_jax import pipeline  # late: a wrong call is refused before JAX starts
    from dollar_jax.compiling import keep_programs
    from dollar_jax.data.video import write_video
    from dollar_jax.videos import Sample, draw, read_noise

    keep_programs()
    dtype = _DTYPE.value or pipeline.usual_dtype()
    model = pipeline.load(_CHECKPOINT.value, tiled=_TILED.value, lora_scale=_LORA_SCALE.value, dtype=dtype)
    card = pipeline.with_solver(model.card, _SAMPLER.value, _SHIFT.value)
    if _SIZE.value:
        card = pipeline.at_size(card, card["video"] | _size(_SIZE.value))
    model = replace(model, card=card)
    model.times(_STEPS.value)
    samples = [
        Sample(f"{prompt:05d}-{video}", caption, prompt, video)
        for prompt, caption in enumerate(prompts)
        for video in range(_NUM_VIDEOS.value)
    ]
    noise = read_noise(_NOISE.value, (len(samples), *model.card["latent_shape"])) if _NOISE.value else None

    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    size, negative_prompt = _BATCH_SIZE.value, _NEGATIVE_PROMPT.value
    made = draw(model, samples, _SEED.value, _STEPS.value, _GUIDANCE.value, size, noise, negative_prompt)
    for sample, latent, frames in counted(made, "sampling", "video", len(samples)):
        if _SAVE_LATENTS.value:
            buffer = io.BytesIO()
            np.save(buffer, latent)
            write_atomically(out / f"{sample.name}.npy", buffer.getvalue())
        write_video(out / f"{sample.name}.mp4", frames, model.card["video"]["fps"])
    print(f"{len(samples)} videos in {out}, {time.perf_counter() - start:.1f} s")


def _size(text: str) -> dict[str, int]:
    """{frames, height, width} of "81x480x832"."""
    if not (match := re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text)):
        raise UserError(f"--size={text}: give FRAMESxHEIGHTxWIDTH, 81x480x832 for example")
    return dict(zip(("frames", "height", "width"), map(int, match.groups()), strict=True))


if __name__ == "__main__":
    run(main)
