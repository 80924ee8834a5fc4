"""The page of a report: computes positions of dots and curves, and renders the template."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from dollar_jax import pictures
from dollar_jax.evaluate.measure import Column
from dollar_jax.evaluate.pages import render
from dollar_jax.evaluate.report_clips import Clip, Look, data_url
from dollar_jax.evaluate.report_rows import DATA, REWARD, SHORT, TEACHER, known, label, show, shown
from dollar_jax.evaluate.timing import speed_up
from dollar_jax.guard import PREFIX

POINTS = 240  # largest number of points of a curve
PLANE = PREFIX + "frechet", PREFIX + REWARD.key  # values in the log that are the axes of the plane

Curves = Sequence[tuple[str, Mapping[str, Sequence[Mapping]]]]  # for each run: variant, and stage -> lines of its log


def make_page(
    rows: Sequence[Mapping],
    columns: Sequence[Column],
    clips: Mapping[str, Sequence[Clip]],
    curves: Curves,
    meta: Mapping,
) -> str:
    """The page as HTML; it makes no request. See `report.write` for the arguments."""
    look = Look(*meta["look"])
    variants = list(dict.fromkeys(row.get("variant", "") for row in rows))
    teachers = {row.get("variant", ""): row for row in rows if row["model"] == TEACHER}
    students = [row for row in rows if row["model"] == meta["students"][row.get("variant", "")]]
    variety = meta.get("variety", [])
    spread = [number for number in range(len(meta["captions"])) if number not in variety[1:]]
    return render(
        "report.html.jinja",
        meta=meta,
        rows=rows,
        label=label,
        show=show,
        short=lambda objective: SHORT.get(objective, objective),
        variants=variants,
        teacher=next(iter(teachers.values())),
        student=students[0],
        sides={label(row): "teacher" for row in teachers.values()} | {label(row): "student" for row in students},
        speeds={label(row): speed_up(teachers[row.get("variant", "")], row) for row in rows if row.get("calls")},
        columns=[(column, _scale(column, rows)) for column in shown(columns, rows)],
        look=look,
        moving={name: [_moving(clip) for clip in made] for name, made in clips.items()},
        grids={name: [data_url(clip.grid, "image/jpeg") for clip in made if clip.grid] for name, made in clips.items()},
        variety=variety,
        spread=spread,
        shop_window=[spread[i] for i in pictures.evenly(len(spread), 8 if look.small else 2)],
        plane=_plane(curves, variants, rows if any(column.key == REWARD.key for column in columns) else ()),
        panels=_panels(curves, variants),
        runs=len(curves),
    )


def _moving(clip: Clip) -> str:
    return data_url(clip.moving, "video/mp4" if clip.grid else "image/png")


def _scale(column: Column, rows: Sequence[Mapping]) -> dict:
    """Positions (0..100) on a column's axis: each model's value, both ends of its spread, and the best value."""
    values = {label(row): row[column.key] for row in rows if known(row.get(column.key))}
    ideal = next((values[label(row)] for row in rows if row["model"] == DATA and label(row) in values), column.ideal)
    marks = [*values.values(), *([] if ideal is None else [ideal])]
    logarithmic = column.unit == "s" and min(marks) > 0  # times differ by factors
    transform = math.log if logarithmic else float
    low, high = (transform(bound(marks)) for bound in (min, max))
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return 4 + 92 * (transform(value) - low) / width

    def ends(row: Mapping) -> list[float]:
        spread, value = row.get("std", {}).get(column.key), row[column.key]
        bounds = [value - spread, value + spread] if known(spread) else []
        return [0.0 if logarithmic and bound <= 0 else min(100.0, max(0.0, place(bound))) for bound in bounds]

    places = {model: place(value) for model, value in values.items()}
    spreads = {label(row): ends(row) for row in rows if label(row) in values}
    return {"places": places, "spreads": spreads, "ideal": None if ideal is None else place(ideal), "value": ideal}


def _panels(curves: Curves, variants: Sequence[str]) -> list[dict]:
    """Panels with the curves of the logs: one panel of 100 x 100 for each stage and name, one curve for each run."""
    panels = []
    for stage in dict.fromkeys(stage for _, stages in curves for stage in stages):
        logs = [(variants.index(variant), stages[stage]) for variant, stages in curves if stage in stages]
        for name in sorted({name for _, lines in logs for line in lines for name in line} - {"step", "time"}):
            points = [(i, [(line["step"], line[name]) for line in lines if known(line.get(name))]) for i, lines in logs]
            points = [(i, np.array(made, float).T) for i, made in points if len(made) > 1]
            if points:
                panels.append({"stage": stage, "name": name} | _panel(points))
    return panels


def _plane(curves: Curves, variants: Sequence[str], rows: Sequence[Mapping]) -> dict | None:
    """The paths of students in training in the plane of held-out reward and Fréchet distance, and data's own reward.

    A path is the mean over the runs of a variant, at the steps that all of them measured. None without a path.
    """
    found = {}
    for variant, stages in curves:
        for stage, lines in stages.items():
            values = [(line["step"], [line.get(name) for name in PLANE]) for line in lines]
            path = {step: both for step, both in values if all(map(known, both))}
            found.setdefault((variant, stage), []).append(path)
    paths = []
    for (variant, stage), made in found.items():
        steps = sorted(set.intersection(*map(set, made)))
        if len(steps) > 1:
            name = f"{variant}: {stage}" if len(variants) > 1 else stage
            paths.append((name, np.mean([[path[at] for at in steps] for path in made], axis=0)))
    if not paths:
        return None
    data = next((row[REWARD.key] for row in rows if row["model"] == DATA and known(row.get(REWARD.key))), None)
    points = np.concatenate([points for _, points in paths])
    low, high = points.min(0), points.max(0)
    if data is not None:
        low[1], high[1] = min(low[1], data), max(high[1], data)
    scale = 92 / np.where(high > low, high - low, 1)

    def place(values: np.ndarray) -> np.ndarray:
        x, y = (4 + scale * (values - low)).T
        return np.stack([x, 100 - y], axis=-1)

    lines = []
    for name, values in paths:
        x, y = place(values).T
        lines.append({"name": name, "path": _path(x, y), "start": _path(x[:1], y[:1]), "end": _path(x[-1:], y[-1:])})
    return {
        "lines": lines,
        "low": low.tolist(),
        "high": high.tolist(),
        "data": data,
        "data_y": None if data is None else float(place(np.array([[low[0], data]]))[0, 1]),
    }


def _panel(points: Sequence[tuple[int, Float[np.ndarray, "2 n"]]]) -> dict:
    """One panel, from (number of the variant, [steps, values]) of each curve."""
    steps, values = (np.concatenate([made[axis] for _, made in points]) for axis in (0, 1))
    logarithmic = bool(values.min() > 0 and values.max() > 20 * values.min())
    transform = np.log if logarithmic else np.asarray
    low, high = transform(values.min()), transform(values.max())
    lines = []
    for variant, (at, value) in points:
        x = 100 * (at - steps.min()) / (np.ptp(steps) or 1)
        y = 100 * (high - transform(value)) / ((high - low) or 1)
        lines.append({"variant": variant, "raw": _path(x, y), "smooth": _path(x, _smooth(y))})
    return {
        "logarithmic": logarithmic,
        "first": np.mean([value[0] for _, (_, value) in points]),
        "last": np.mean([value[-1] for _, (_, value) in points]),
        "low": values.min(),
        "high": values.max(),
        "steps": int(steps.max()),
        "lines": lines,
    }


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over a twentieth of the curve; the window is cut at the ends."""
    width = max(1, len(values) // 20) | 1
    box = np.ones(width)
    return np.convolve(values, box, "same") / np.convolve(np.ones(len(values)), box, "same")


def _path(x: np.ndarray, y: np.ndarray) -> str:
    keep = pictures.evenly(len(x), POINTS)
    return "M" + "L".join(f"{a:.4g} {b:.4g}" for a, b in zip(x[keep], y[keep], strict=True))
