"""The rows of a report: what is measured of each model, over one run or several, and how it is written for people."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

TEACHER, DATA = "teacher", "data"  # the models that every other row is compared with
SHORT = {"variational_score": "VSD", "consistency": "CD", "latent_reward": "LRM", "policy_gradient": "DDPO"}


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


def label(row: Mapping) -> str:
    """What a row is called where those of several variants stand together."""
    return f"{row['variant']}: {row['model']}" if "variant" in row else row["model"]


def show(value: float | None, unit: str, spread: float | None = None) -> str:
    """A number as people read it: 0.993 % is 99.3 %, 0.0471 s is 47.1 ms; with a spread 99.3 ± 0.2 %."""
    if not known(value):
        return "\N{EN DASH}"
    match unit:
        case "%":
            scale, digits, margin, ending = 100, ".1f", ".1f", " %"
        case "s":
            scale, digits, margin, ending = (1, ".3g", ".2g", " s") if value >= 1 else (1000, ".3g", ".2g", " ms")
        case "dB":
            scale, digits, margin, ending = 1, ".1f", ".1f", " dB"
        case _:
            digits = margin = ".2f" if abs(value) < 10 else ".1f"
            scale, ending = 1, ""
    around = f" ± {scale * spread:{margin}}" if known(spread) else ""
    return f"{scale * value:{digits}}{around}{ending}"


def over_seeds(runs: Sequence[Sequence[Mapping]]) -> list[dict]:
    """One row for each model of several runs, in the order of the first that has it.

    Numbers of `METRICS` become their mean over the runs where they are known; "std" holds their standard deviations
    (n - 1) by key, where two runs or more know them, and "seeds" counts the runs. The rest is that of the first.
    """
    models = dict.fromkeys(row["model"] for rows in runs for row in rows)
    return [_over_seeds([row for rows in runs for row in rows if row["model"] == model]) for model in models]


def _over_seeds(rows: Sequence[Mapping]) -> dict:
    if len(rows) == 1:
        return dict(rows[0])
    values = {metric.key: [row[metric.key] for row in rows if known(row.get(metric.key))] for metric in METRICS}
    means = {key: float(np.mean(numbers)) for key, numbers in values.items() if numbers}
    deviations = {key: float(np.std(numbers, ddof=1)) for key, numbers in values.items() if len(numbers) > 1}
    return {**rows[0], **means, "std": deviations, "seeds": len(rows)}


def known(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)


def finite(tree):
    """The tree with null for what JSON has no number for."""
    if isinstance(tree, Mapping):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
