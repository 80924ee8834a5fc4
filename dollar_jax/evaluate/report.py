"""The report of a run: one self-contained page for people, and report.json for programs."""

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from jaxtyping import UInt8

from dollar_jax import pictures
from dollar_jax.evaluate.timing import speed_up
from dollar_jax.files import write_atomically

TEACHER, DATA = "teacher", "data"  # the models that every other row is compared with
SHORT = {"variational_score": "VSD", "consistency": "CD", "latent_reward": "LRM", "policy_gradient": "DDPO"}
PIXELATED = 64  # frames up to this height are shown as they are, every pixel a square
THUMBNAIL, THUMBNAILS = 112, 16  # height and number of frames of larger clips: the page has to stay light
POINTS = 240  # of a curve


class Metric(NamedTuple):
    key: str
    name: str
    unit: str
    good: str  # which numbers are, in two words
    ideal: float | None  # where data's own value does not say
    meaning: str  # for somebody who has not read the paper


METRICS = (
    Metric("alignment", "Alignment", "%", "higher is better", 1.0, "Clips that show all that their caption says."),
    Metric(
        *("clean_db", "Cleanness", "dB", "near data", None),
        "How close each clip is to a perfect drawing of what it shows. Noise lowers it, blur hardly does: see detail.",
    ),
    Metric(
        *("frechet", "Fréchet distance", "", "lower is better", 0.0),
        "How far the clips as a whole lie from real ones: 0 is the same distribution, 100 one average clip repeated.",
    ),
    Metric(
        *("hf", "Detail", "", "near 1", 1.0),
        "Energy where real clips hardly vary, relative to theirs. Below 1 is too smooth, above 1 is noise.",
    ),
    Metric(
        *("spread", "Spread", "", "near 1", 1.0),
        "How much clips of one caption differ in what it leaves open, relative to real ones. 0 is a collapse.",
    ),
    Metric(
        *("vendi", "Vendi score", "", "near data", None),
        "How many different videos there are among those of one prompt. Noise counts as different too: see detail.",
    ),
    Metric(
        *("reward", "Reward", "", "higher is better", None),
        "What fine-tuning asks for. Bought with Fréchet distance or spread, it is over-optimised.",
    ),
    Metric(
        *("diffusion_seconds_per_video", "Time a video", "s", "lower is better", None),
        "Denoising alone, without text encoder and decoder, waited for to the end.",
    ),
)


def write_report(
    folder: str | os.PathLike,
    rows: Sequence[Mapping],
    clips: Mapping[str, UInt8[np.ndarray, "n f h w 3"]],
    curves: Mapping[str, Sequence[Mapping]],
    meta: Mapping,
) -> None:
    """Writes `folder/index.html`, which needs no network and no script, and `folder/report.json`.

    Args:
      rows: a dict for each model: "model" (a name of its own; "teacher" is one, "data" may be), "videos", but for data
        "objectives", "steps" and "calls" of the network a video, and those of `METRICS` that were measured. More keys
        go to report.json. None and nan are unknown.
      clips: model -> its videos of n prompts, the same prompts and noise for every model.
      curves: stage -> the lines of its log (`metrics.read`).
      meta: "title"; "student", the model that the page presents; "captions" of the n prompts; "fps"; "command" that
        repeats the run; "machine" that the times were taken on; "configs", name -> the text of a configuration.

    Raises:
      ValueError: a model with clips and two rows or none, no clips of the teacher or the student, or not one clip of
        every caption.
    """
    names = [row["model"] for row in rows]
    lacking = [*(set(clips) - set(names)), *({TEACHER, meta["student"]} - set(clips))]
    if lacking or len(set(names)) < len(names):
        raise ValueError(f"every model needs one row, teacher and student clips: {lacking} lack them, rows are {names}")
    if {len(videos) for videos in clips.values()} != {len(meta["captions"])}:
        raise ValueError(f"{len(meta['captions'])} captions, but {[len(videos) for videos in clips.values()]} clips")
    folder = Path(folder)
    # Both are made before either is written: a mistake in `meta` leaves the old report whole.
    numbers = json.dumps(_finite({"rows": rows, "meta": meta}), indent=1, ensure_ascii=False)
    page = _render(rows, clips, curves, meta)
    write_atomically(folder / "report.json", numbers + "\n")
    write_atomically(folder / "index.html", page)


def show(value: float | None, unit: str) -> str:
    """A number as people read it: 0.993 % is 99.3 %, 0.0471 s is 47.1 ms."""
    if not _known(value):
        return "\N{EN DASH}"
    match unit:
        case "%":
            return f"{100 * value:.1f} %"
        case "s":
            return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
        case "dB":
            return f"{value:.1f} dB"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _render(rows, clips, curves, meta) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dollar_jax", "evaluate"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"show": show, "short": lambda objective: SHORT.get(objective, objective)}
    by_name = {row["model"]: row for row in rows}
    teacher, student = by_name[TEACHER], by_name[meta["student"]]
    shown = {row["model"]: [_small(video) for video in clips[row["model"]]] for row in rows if row["model"] in clips}
    first = next(iter(shown.values()))[0]
    return environment.get_template("report.html.jinja").render(
        meta=meta,
        rows=rows,
        teacher=teacher,
        student=student,
        speeds={row["model"]: speed_up(teacher, row) for row in rows if row.get("calls")},
        metrics=[
            (metric, _scale(metric, rows)) for metric in METRICS if any(_known(row.get(metric.key)) for row in rows)
        ],
        strips={model: [_data_url(video) for video in videos] for model, videos in shown.items()},
        shop_window=np.linspace(0, len(meta["captions"]) - 1, min(8, len(meta["captions"])))
        .round()
        .astype(int)
        .tolist(),
        frames=len(first),
        aspect=first.shape[2] / first.shape[1],
        pixelated=first.shape[1] <= PIXELATED,
        curves=[(stage, curve) for stage, lines in curves.items() for curve in _curves(lines)],
    )


def _scale(metric: Metric, rows: Sequence[Mapping]) -> dict:
    """Where each model's value lies on the metric's axis, 0..100, and where the best value does."""
    values = {row["model"]: row[metric.key] for row in rows if _known(row.get(metric.key))}
    ideal = values.get(DATA, metric.ideal)
    marks = [*values.values(), *([] if ideal is None else [ideal])]
    transform = math.log if metric.unit == "s" else float  # times differ by factors
    low, high = (transform(bound(marks)) for bound in (min, max))
    width = (high - low) or 1.0

    def place(value):
        return 4 + 92 * (transform(value) - low) / width

    places = {model: place(value) for model, value in values.items()}
    return {"places": places, "ideal": None if ideal is None else place(ideal), "value": ideal}


def _curves(lines: Sequence[Mapping]) -> list[dict]:
    """What a stage logged, each as a curve in a box of 100 x 100."""
    curves = []
    for name in sorted({name for line in lines for name in line} - {"step", "time"}):
        points = [(line["step"], line[name]) for line in lines if _known(line.get(name))]
        if len(points) < 2:
            continue
        steps, values = (np.array(column, float) for column in zip(*points, strict=True))
        logarithmic = bool(values.min() > 0 and values.max() > 20 * values.min())
        heights = np.log(values) if logarithmic else values
        low, high = heights.min(), heights.max()
        x = 100 * (steps - steps[0]) / (steps[-1] - steps[0])
        y = 100 * (high - heights) / ((high - low) or 1)
        curves.append(
            {
                "name": name,
                "loss": "loss" in name,
                "logarithmic": logarithmic,
                "first": values[0],
                "last": values[-1],
                "low": values.min(),
                "high": values.max(),
                "steps": int(steps[-1]),
                "raw": _path(x, y),
                "smooth": _path(x, _smooth(y)),
            }
        )
    return curves


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over about a twentieth of the curve; at the ends over what there is of it."""
    width = max(1, len(values) // 20) | 1
    box = np.ones(width)
    return np.convolve(values, box, "same") / np.convolve(np.ones(len(values)), box, "same")


def _path(x: np.ndarray, y: np.ndarray) -> str:
    keep = pictures.evenly(len(x), POINTS)
    return "M" + "L".join(f"{a:.4g} {b:.4g}" for a, b in zip(x[keep], y[keep], strict=True))


def _small(video: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "F H W 3"]:
    if video.shape[1] <= PIXELATED:
        return video
    return pictures.shrink(video[pictures.evenly(len(video), THUMBNAILS)], THUMBNAIL)


def _data_url(video: UInt8[np.ndarray, "f h w 3"]) -> str:
    kind = "PNG" if video.shape[1] <= PIXELATED else "JPEG"
    return f"data:image/{kind.lower()};base64,{base64.b64encode(pictures.strip(video, kind)).decode()}"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _finite(tree):
    """JSON has no nan: null says unknown."""
    if isinstance(tree, Mapping):
        return {name: _finite(value) for name, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
