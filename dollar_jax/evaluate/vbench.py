"""VBench's sixteen dimensions as three numbers: quality, semantic and total score (arXiv 2311.17982).

Each dimension is rescaled to 0..1 between the lowest and the highest value that VBench publishes for it. The quality
and semantic scores are weighted means of the rescaled dimensions; total = (4 quality + semantic) / 5.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dollar_jax.errors import UserError


class Dimension(NamedTuple):
    """VBench's constants of a dimension (scripts/constant.py there)."""

    group: str
    low: float
    high: float
    weight: float = 1.0


DIMENSIONS = {
    "subject_consistency": Dimension("quality", 0.1462, 1.0),
    "background_consistency": Dimension("quality", 0.2615, 1.0),
    "temporal_flickering": Dimension("quality", 0.6293, 1.0),
    "motion_smoothness": Dimension("quality", 0.706, 0.9975),
    "dynamic_degree": Dimension("quality", 0.0, 1.0, weight=0.5),
    "aesthetic_quality": Dimension("quality", 0.0, 1.0),
    "imaging_quality": Dimension("quality", 0.0, 1.0),
    "object_class": Dimension("semantic", 0.0, 1.0),
    "multiple_objects": Dimension("semantic", 0.0, 1.0),
    "human_action": Dimension("semantic", 0.0, 1.0),
    "color": Dimension("semantic", 0.0, 1.0),
    "spatial_relationship": Dimension("semantic", 0.0, 1.0),
    "scene": Dimension("semantic", 0.0, 0.8222),
    "temporal_style": Dimension("semantic", 0.0, 0.364),
    "appearance_style": Dimension("semantic", 0.0009, 0.2855),
    "overall_consistency": Dimension("semantic", 0.0, 0.364),
}
GROUPS = {"quality": 4.0, "semantic": 1.0}  # group -> weight in the total score


def read_results(path: str) -> dict[str, float]:
    """Reads VBench's result file, {dimension: [value, ...]} or {dimension: value}. Returns dimension -> value in 0..1.

    Raises:
      UserError: the file is missing or is not such JSON, or a value is not in 0..1.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--results={path}: {error}") from error
    if not isinstance(results, dict):
        raise UserError(f'--results={path}: wanted {{"subject_consistency": [0.95, ...], ...}}')
    values = {}
    for name in DIMENSIONS:
        if name not in results:
            continue
        value = results[name]
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"--results={path}: {name} is {reprlib.repr(value)}; VBench gives numbers in 0..1")
        values[name] = float(value)
    return values


def scores(values: Mapping[str, float]) -> dict[str, float]:
    """Quality, semantic and total score in percent, from values in 0..1; scores that lack a dimension are left out."""
    found = {}
    for group in GROUPS:
        members = {name: one for name, one in DIMENSIONS.items() if one.group == group}
        if members.keys() <= values.keys():
            normalised = (one.weight * (values[name] - one.low) / (one.high - one.low) for name, one in members.items())
            found[group] = 100 * math.fsum(normalised) / math.fsum(one.weight for one in members.values())
    if found.keys() == GROUPS.keys():
        total = math.fsum(weight * found[group] for group, weight in GROUPS.items())
        found["total"] = total / math.fsum(GROUPS.values())
    return found


def table(values: Mapping[str, float], found: Mapping[str, float]) -> str:
    """Dimensions and scores in percent, like the paper's Tab. 15; a dash for a missing one."""
    percent = {name: 100 * value for name, value in values.items()} | found
    names = [*DIMENSIONS, *GROUPS, "total"]
    width = max(map(len, names)) + 2
    cells = {name: f"{percent[name]:.2f}" if name in percent else "-" for name in names}
    lines = [f"{name.replace('_', ' '):<{width}}{cell:>6}" for name, cell in cells.items()]
    rule = "-" * (width + 6)
    return "\n".join([*lines[: len(DIMENSIONS)], rule, *lines[len(DIMENSIONS) :]])


def missing(values: Mapping[str, float]) -> list[str]:
    """The dimensions without a value."""
    return [name for name in DIMENSIONS if name not in values]
