"""Samples the videos that VBench needs, and aggregates VBench's results.

    python -m dollar_jax.evaluate vbench --checkpoint=C --prompts=LONG.txt --short_prompts=SHORT.txt --out=DIR
    python -m dollar_jax.evaluate vbench --results=FILE.json

The first command samples DIR/{short prompt}-{0..4}.mp4, and up to -24 for the prompts of temporal flickering; the same
command again continues. DIR.manifest.json has the prompt and the noise of each video. SHORT.txt is VBench's own
prompts/all_dimension.txt, LONG.txt has a longer version of each line; without --short_prompts, --prompts is used.

The second command prints the quality, semantic and total score, in percent. FILE.json is VBench's result file,
{"subject_consistency": [0.95, ...], ...}, with values in 0..1 of the sixteen dimensions.
"""

import json
import time
from pathlib import Path

from absl import flags

from dollar_jax.cli import required
from dollar_jax.data.prompts import read_prompts
from dollar_jax.errors import UserError
from dollar_jax.evaluate import vbench
from dollar_jax.files import write_atomically

_RESULTS = flags.DEFINE_string("results", None, "VBench's result file, to aggregate.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a teacher or student, to sample.")
_PROMPTS = flags.DEFINE_string("prompts", None, "Text file of prompts for the model, one per line.")
_SHORT_PROMPTS = flags.DEFINE_string("short_prompts", None, "VBench's prompts in the same order, for the file names.")
_FLICKERING = flags.DEFINE_string("flickering_prompts", None, "File of the short prompts with 25 videos, not 5.")
_OUT = flags.DEFINE_string("out", None, "Folder for the videos, or JSON file for the scores.")
_STEPS = flags.DEFINE_integer("steps", None, "Network steps; by default the checkpoint's own.", lower_bound=1)
_GUIDANCE = flags.DEFINE_float("guidance", None, "The paper's w, diffusers' scale minus 1; default: the checkpoint's.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"], "As of `sample`; default: bfloat16, on CPUs float32."
)
_TILED = flags.DEFINE_bool("tiled", False, "Decode in overlapping tiles, with the memory of one.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Videos at a time.", lower_bound=1)


def main() -> None:
    if bool(_RESULTS.value) == bool(_CHECKPOINT.value):
        raise UserError("give either --results=FILE.json, to aggregate, or --checkpoint=C, to sample")
    _aggregate() if _RESULTS.value else _sample()


def _aggregate() -> None:
    values = vbench.read_results(_RESULTS.value)
    scores = vbench.scores(values)
    print(vbench.table(values, scores))
    if lacking := vbench.missing(values):
        raise UserError(
            f"--results={_RESULTS.value} has no {', '.join(lacking)}: without them there is no"
            f" {' and no '.join(name for name in (*vbench.GROUPS, 'total') if name not in scores)} score"
        )
    text = json.dumps(scores)
    if _OUT.value:
        write_atomically(_OUT.value, text + "\n")
    print(text)


def _sample() -> None:
    required(_PROMPTS, _OUT)
    prompts = read_prompts(_PROMPTS.value)
    short_prompts, flickering = (
        read_prompts(flag.value, flag.name) if flag.value else default
        for flag, default in ((_SHORT_PROMPTS, prompts), (_FLICKERING, []))
    )

    from dollar_jax.evaluate.vbench_suite import manifest_path, suite, write_suite

    samples = suite(prompts, short_prompts, flickering)

    import jax

    from dollar_jax import pipeline
    from dollar_jax.sharding import local_mesh

    out, start, dtype = Path(_OUT.value), time.perf_counter(), _DTYPE.value or pipeline.usual_dtype()
    options = dtype, _SEED.value, _STEPS.value, _GUIDANCE.value, _BATCH_SIZE.value
    with jax.set_mesh(local_mesh()):
        model = pipeline.load(_CHECKPOINT.value, tiled=_TILED.value, dtype=dtype)
        written = write_suite(_CHECKPOINT.value, model, samples, out, *options)
    print(
        f"{len(samples)} videos in {out}, {written} of them new, {time.perf_counter() - start:.1f} s;"
        f" {manifest_path(out)} has the prompt and noise of each"
    )
