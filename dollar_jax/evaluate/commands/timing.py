"""python -m dollar_jax.evaluate timing --teacher=W/teacher --student=W/vsd_cd: sampling time per video (Tab. 4).

The table has the seconds per video of text encoding, diffusion and decoding, each measured to its end: mean and
standard deviation over repeats. Both models make videos of the student's size. The speed-up is the teacher's diffusion
time divided by the student's (medians; the models take turns). Its bound is the ratio of network calls. A speed-up far
below the bound means that most time is spent outside of the network: raise --batch_size.
"""

import json
from dataclasses import replace

from absl import flags

from dollar_jax.cli import required
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically

_TEACHER = flags.DEFINE_string("teacher", None, "Folder of the teacher.")
_STUDENT = flags.DEFINE_string("student", None, "Folder of the student.")
_STEPS = flags.DEFINE_list("steps", None, "The student's steps; default: its own number, and 4, 2, 1 if it has them.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "The teacher's w as in the paper, 0: none; default: its checkpoint's.")
_PROMPT = flags.DEFINE_string("prompt", "a cat asleep on a piano", "Prompt to sample.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Videos at a time.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Runs, after one that compiles.", lower_bound=1)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"], "As of `sample`; default: bfloat16, on CPUs float32."
)
_OUT = flags.DEFINE_string("out", None, "A JSON file for the numbers.")


def main() -> None:
    required(_TEACHER, _STUDENT)
    if _STEPS.value and not all(steps.isdigit() and int(steps) for steps in _STEPS.value):
        raise UserError(f"--steps={','.join(_STEPS.value)}: wanted numbers, as in 4,2,1")

    import jax

    from dollar_jax import pipeline
    from dollar_jax.evaluate import timing

    dtype = _DTYPE.value or pipeline.usual_dtype()
    teacher = pipeline.load(_TEACHER.value, dtype=dtype)
    student = pipeline.load(_STUDENT.value, parts=("transformer",), dtype=dtype)
    teacher = replace(teacher, card=pipeline.at_size(teacher.card, student.card["video"]))
    own = len(teacher.card["times"])
    guidance = teacher.card["guidance"] if _GUIDANCE.value is None else _GUIDANCE.value
    samplings = {f"teacher, {own} steps": timing.Sampling(teacher, own, guidance)}
    for steps in map(int, _STEPS.value) if _STEPS.value else usual_steps(student):
        student.times(steps)  # refused before anything is compiled
        name = f"student, {steps} step{'s' * (steps > 1)}"
        samplings[name] = timing.Sampling(student, steps, student.card["guidance"])
    seconds = timing.time_parts(samplings, _PROMPT.value, _BATCH_SIZE.value, _REPEATS.value)
    rows = make_rows({name: sampling.calls for name, sampling in samplings.items()}, seconds)

    video = teacher.card["video"]
    size = f"{video['frames']} x {video['height']} x {video['width']}"
    device = jax.devices()[0].device_kind
    if _OUT.value:
        how = {"video": size, "device": device, "dtype": dtype}
        how |= {"batch_size": _BATCH_SIZE.value, "repeats": _REPEATS.value}
        parts = {name: timed._asdict() for name, timed in seconds.items()}
        write_atomically(_OUT.value, json.dumps(how | {"rows": rows, "seconds": parts}, indent=1) + "\n")
    print(table(rows, seconds))
    print(f"\nSeconds a video, mean ± std of {_REPEATS.value} runs; {size}, {_BATCH_SIZE.value} at a time, {device}")


def usual_steps(student) -> list[int]:
    """The student's own number of steps, and 4, 2 and 1 if the student can sample at a subset of its timesteps."""
    steps = {len(student.card["times"])}
    for count in 4, 2, 1:
        try:
            student.times(count)
        except UserError:
            continue
        steps.add(count)
    return sorted(steps, reverse=True)


def make_rows(calls: dict[str, int], seconds: dict) -> list[dict]:
    """{"model", "calls", "diffusion_seconds_per_video", "speed_up", "bound"} of each model, relative to the first."""
    from dollar_jax.evaluate.timing import speed_up

    rows = [
        {"model": name, "calls": count, "diffusion_seconds_per_video": seconds[name].median}
        for name, count in calls.items()
    ]
    return [row | dict(zip(("speed_up", "bound"), speed_up(rows[0], row), strict=True)) for row in rows]


def table(rows: list[dict], seconds: dict) -> str:
    """The rows as a table in Markdown."""
    text, decoding = (_cell(seconds[part]) for part in ("text", "decoding"))
    lines = ["| model | calls | text encoding | diffusion | decoding | speed-up (bound) |", "|---" + "|---:" * 5 + "|"]
    for row in rows:
        ratio = f"{row['speed_up']:.1f} ({row['bound']:.3g})"
        lines.append(
            f"| {row['model']} | {row['calls']} | {text} | {_cell(seconds[row['model']])} | {decoding} | {ratio} |"
        )
    return "\n".join(lines)


def _cell(timed) -> str:
    return f"{timed.mean:.3g} ± {timed.std:.2g}"
