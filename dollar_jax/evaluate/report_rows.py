"""The rows of a report, one for each model: merged over seeds, and formatted for people."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dollar_jax.evaluate.measure import Column

TEACHER, DATA = "teacher", "data"  # models with which all others are compared
DECODED = "data through the VAE"  # what a perfect model of the latents would make
SHORT = {"variational_score": "VSD", "consistency": "CD", "latent_reward": "LRM", "policy_gradient": "DDPO"}


# Columns of every report, beside the metrics of its config.
REWARD = Column(
    "reward",
    "Reward",
    "The reward that tuning maximises. If Fréchet distance or spread get worse, it is over-optimised.",
    better="higher",
)
SECONDS = Column(
    "diffusion_seconds_per_video",
    "Time a video",
    "Time of the diffusion alone, without text encoder and decoder, measured to the end of the computation.",
    better="lower",
    unit="s",
)


def label(row: Mapping) -> str:
    """Name of a row: VARIANT: MODEL in a report of several variants, else MODEL."""
    return f"{row['variant']}: {row['model']}" if "variant" in row else row["model"]


def shown(columns: Sequence[Column], rows: Sequence[Mapping]) -> list[Column]:
    """The columns for people (`Column.shown`) with a value in some row."""
    return [column for column in columns if column.shown and any(known(row.get(column.key)) for row in rows)]


def show(value: float | None, unit: str, spread: float | None = None) -> str:
    """Formats a value for people: 0.993 with unit % is 99.3 %, 0.0471 s is 47.1 ms; with a spread 99.3 ± 0.2 %."""
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
    """Merges the rows of several runs into one row for each model, in the order of their first occurrence.

    Values of the columns become means over the runs that know them. "std" has standard deviations (n - 1) by key, for
    values that two or more runs know. "seeds" is the number of runs. Other keys are those of the first run.
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
    """Whether the value is a finite number."""
    return value is not None and math.isfinite(value)


def finite(tree):
    """The tree with None in place of nan and infinity, which JSON does not have."""
    if isinstance(tree, Mapping):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
