"""The rows of a report: what is measured of each model, over one run or several, and how it is written for people."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dollar_jax.evaluate.measure import Column

TEACHER, DATA = "teacher", "data"  # the models that every other row is compared with
SHORT = {"variational_score": "VSD", "consistency": "CD", "latent_reward": "LRM", "policy_gradient": "DDPO"}


# What a report measures beside the metrics of its config.
REWARD = Column(
    "reward",
    "Reward",
    "What fine-tuning asks for. Bought with Fréchet distance or spread, it is over-optimised.",
    better="higher",
)
SECONDS = Column(
    "diffusion_seconds_per_video",
    "Time a video",
    "Denoising alone, without text encoder and decoder, waited for to the end.",
    better="lower",
    unit="s",
)


def label(row: Mapping) -> str:
    """What a row is called where those of several variants stand together."""
    return f"{row['variant']}: {row['model']}" if "variant" in row else row["model"]


def shown(columns: Sequence[Column], rows: Sequence[Mapping]) -> list[Column]:
    """The columns that people are shown, of which some row has a number."""
    return [column for column in columns if column.shown and any(known(row.get(column.key)) for row in rows)]


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
            scale, ending = 1, f" {unit}" if unit else ""
    around = f" ± {scale * spread:{margin}}" if known(spread) else ""
    return f"{scale * value:{digits}}{around}{ending}"


def over_seeds(runs: Sequence[Sequence[Mapping]], columns: Sequence[Column]) -> list[dict]:
    """One row for each model of several runs, in the order of the first that has it.

    Numbers of the columns become their mean over the runs where they are known; "std" holds their standard deviations
    (n - 1) by key, where two runs or more know them, and "seeds" counts the runs. The rest is that of the first.
    """
    models = dict.fromkeys(row["model"] for rows in runs for row in rows)
    keys = [column.key for column in columns]
    return [_over_seeds([row for rows in runs for row in rows if row["model"] == model], keys) for model in models]


def _over_seeds(rows: Sequence[Mapping], keys: Sequence[str]) -> dict:
    if len(rows) == 1:
        return dict(rows[0])
    values = {key: [row[key] for row in rows if known(row.get(key))] for key in keys}
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
