"""Tables of the pages from the numbers that runs left: docs/numbers keeps the numbers, a page says what it shows.

    python -m docs.tables keep COMMIT DIR ...    keeps what was made at this commit: an experiment, DIR/SEED/report, or
                                                 plans, DIR/*.json (`dollar_jax.plan --out`)
    python -m docs.tables                        writes the tables into the pages

A table follows a comment in its page, in YAML. `rows` has the label of each row by its place in docs/numbers,
EXPERIMENT/MODEL or plans/PLAN; `columns` names the columns; `title` is the head of the labels. The column
`frechet, 2 steps` is of the model EXPERIMENT/MODEL, 2 steps, and `costs/arithmetic` of costs/MODEL.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from dollar_jax import metrics
from dollar_jax.files import write_atomically

ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / "docs" / "numbers"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
TABLE = re.compile(r"<!-- table\n(.*?)-->\n(?:\|[^\n]*\n)*", re.S)


class Column(NamedTuple):
    """A column: its title, and the text of its cell from the numbers of a row."""

    title: str
    cell: Callable[[Mapping[str, Any]], str]


def around(key: str, digits: int | None, scale: float = 1) -> Callable[[Mapping], str]:
    """Mean ± standard deviation over seeds; without digits, as many as show three figures of the mean."""

    def cell(row: Mapping) -> str:
        values = [scale * value for value in row.get(key, ()) if value is not None]
        if not values:
            return ""
        mean = np.mean(values)
        shown = digits if digits is not None else max(0, 2 - max(0, int(np.floor(np.log10(mean)))))
        return f"{mean:.{shown}f}" + (f" ± {np.std(values, ddof=1):.{shown}f}" if len(values) > 1 else "")

    return cell


def each(key: str, digits: int) -> Callable[[Mapping], str]:
    """The value of each seed."""
    return lambda row: ", ".join(f"{value:.{digits}f}" for value in row.get(key, ()))


def needed(plan: Mapping) -> str:
    """Memory that a device needs, and whether it has that."""
    memory = plan["memory"]
    share = memory["needed"] / memory["available"]
    verdict = ": does not fit" if share > 1 else ": hardly fits" if share > 0.95 else ""
    return f"{memory['needed'] / 1e9:.1f} GB{verdict}"


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s"


COLUMNS = {
    # Of a model of an experiment.
    "calls": Column("calls", lambda row: str(int(row["calls"])) if "calls" in row else ""),
    "alignment": Column("alignment %", around("alignment", 1, 100)),
    "clean_db": Column("clean dB", around("clean_db", 1)),
    "frechet": Column("Fréchet", around("frechet", None)),
    "frechet_each": Column("Fréchet, each seed", each("frechet", 2)),
    "hf": Column("detail", around("hf", 2)),
    "spread": Column("spread", around("spread", 2)),
    "vendi": Column("Vendi", around("vendi", 2)),
    "reward": Column("reward", around("reward", 3)),
    "update": Column("s an update", around("seconds_per_update", 2)),
    # Of a plan.
    "needed": Column("memory needed per device", needed),
    "temporary": Column("of which temporary", lambda plan: f"{max(plan['memory']['temporary'].values()) / 1e9:.1f} GB"),
    "available": Column("memory of a device", lambda plan: f"{plan['memory']['available'] / 1e9:.1f} GB"),
    "compiled": Column("compile time", lambda plan: seconds(plan["compile_seconds"])),
    "arithmetic": Column("GFLOP an update", lambda plan: f"{plan['flops'] / 1e9:.1f}"),
    "bound": Column("lower bound of an iteration", lambda plan: seconds(plan["seconds"])),
    "predicted": Column("predicted time of an iteration", lambda plan: seconds(plan["predicted"])),
    "use": Column("use of the peak", lambda plan: f"{plan['use'][0]:.1%}"),
    "use_once": Column("without recomputation", lambda plan: f"{plan['use'][1]:.1%}"),
}


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def experiment(folder: Path) -> dict:
    """The numbers of an experiment: each model's by seed, and the config that the seeds share."""
    seeds = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    reports = [json.loads((seed / "report" / "report.json").read_text()) for seed in seeds]
    config = json.loads((seeds[0] / "config.json").read_text())
    del config["seed"], config["teacher"]["path"]
    models = {}
    for seed, report in zip(seeds, reports, strict=True):
        for row in report["rows"]:
            model = models.setdefault(row["model"], {})
            for name, value in row.items():
                if name in ("steps", "calls", "videos", "objectives"):
                    model[name] = value
                elif name != "model":
                    model.setdefault(name, []).append(rounded(value))
            lines = metrics.read(seed / row["model"])
            times = [line["seconds_per_step"] for line in lines if "seconds_per_step" in line]
            if times:
                model.setdefault("seconds_per_update", []).append(rounded(np.median(times)))
    numbers = ",".join(seed.name for seed in seeds)
    command = f"python -m dollar_jax.laboratory --experiment={folder.name} --out=DIR --seeds={numbers}"
    return {"command": command, "machine": reports[0]["meta"]["machine"], "config": config, "models": models}


def plans(folder: Path) -> dict:
    """The numbers of plans, each with its command."""
    kept = "command", "devices", "mesh", "memory", "seconds", "predicted", "use", "compile_seconds"
    models = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        content["command"] = re.sub(r" --out=\S+", "", content["command"])
        models[path.stem] = {name: content[name] for name in kept} | {"flops": content["flops"]["total"]}
    return {"models": models}


def numbers(name: str) -> Mapping[str, Mapping[str, Any]]:
    """The numbers of each model in a file of docs/numbers."""
    return json.loads((NUMBERS / f"{name}.json").read_text())["models"]


def cells(place: str, names: Sequence[str]) -> Iterator[str]:
    """The cells of a row; empty where its model was not measured in so many steps."""
    experiment, model = place.split("/", 1)
    models = numbers(experiment)
    own = models[model]
    for name in names:
        column, _, steps = name.partition(", ")
        other, _, column = column.rpartition("/")
        if other:
            found = numbers(other)[model]
        elif steps:
            found = models.get(f"{model}, {steps}", {})
        else:
            found = own
        yield COLUMNS[column].cell(found)


def title(name: str) -> str:
    """The head of a column."""
    column, comma, steps = name.rpartition("/")[2].partition(", ")
    return COLUMNS[column].title + comma + steps


def table(spec: Mapping[str, Any]) -> str:
    """The Markdown of a table."""
    columns = spec["columns"]
    rows = [[spec.get("title", ""), *map(title, columns)]]
    rows += [[label, *cells(place, columns)] for place, label in spec["rows"].items()]
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    ruler = "|---" * lines[0].count(" |") + "|"
    return "\n".join([lines[0], ruler, *lines[1:], ""])


def page(text: str) -> str:
    """The text of a page with its tables made anew."""
    return TABLE.sub(lambda found: found[0][: found[0].index("-->") + 4] + table(yaml.safe_load(found[1])), text)


def keep(commit: str, folders: Sequence[Path]) -> None:
    for folder in folders:
        content = plans(folder) if any(folder.glob("*.json")) else experiment(folder)
        text = json.dumps({"commit": commit} | content, indent=1, ensure_ascii=False)
        text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: "[" + re.sub(r",\s+", ", ", found[1]) + "]", text)
        write_atomically(NUMBERS / f"{folder.name}.json", text + "\n")


def main() -> None:
    match sys.argv[1:]:
        case []:
            for path in PAGES:
                write_atomically(path, page(path.read_text()))
        case ["keep", commit, first, *more]:
            keep(commit, [Path(path) for path in (first, *more)])
        case _:
            sys.exit("usage: python -m docs.tables [keep COMMIT DIR ...]")


if __name__ == "__main__":
    main()
