"""One report of several finished runs: seeds become mean and spread, variants stand side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from dollar_jax import metrics
from dollar_jax.evaluate.report import write
from dollar_jax.evaluate.report_clips import Look, read_clips
from dollar_jax.evaluate.report_rows import label, over_seeds
from dollar_jax.importing import UserError

SEEDS = ("seed", "teacher.path")  # fields in which seeds of one experiment differ: each may have a teacher of its own
MACHINE = ("mesh", "remat", "attention", "offload")  # how it was computed, not what


class Run(NamedTuple):
    """A finished run."""

    variant: str
    workdir: Path
    report: Mapping  # report.json
    fields: Mapping[str, object]  # of the config, dotted name -> value; without the machine's


def combine(runs: Sequence[tuple[str, Path]], folder: Path, command: str) -> None:
    """Writes `folder/index.html`, `report.md` and `report.json` from what each run left in its workdir.

    Args:
      runs: name of the variant and workdir. Runs of one name are seeds of it.
      command: that makes this report.
    Raises:
      UserError: a run without a report; runs of the name "" whose configs differ in more than the seed; runs with
        other captions or videos of another size.
    """
    read = [_read(variant, workdir) for variant, workdir in runs]
    first = read[0]
    for run in read[1:]:
        _check(first, run)
    groups = {variant: [run for run in read if run.variant == variant] for variant, _ in runs}
    if len(read) == 1:
        rows, meta = first.report["rows"], dict(first.report["meta"])
    else:
        named = {variant: {"variant": variant} if len(groups) > 1 else {} for variant in groups}
        rows = [
            named[variant] | row
            for variant, group in groups.items()
            for row in over_seeds([run.report["rows"] for run in group])
        ]
        meta = {**first.report["meta"], "command": command} | _behind(groups)
    if len(groups) == 1:
        meta["students"] = {"": first.report["meta"]["student"]}
    write(folder, rows, _clips(groups), _curves(read, groups), meta)


def _read(variant: str, workdir: Path) -> Run:
    try:
        report = json.loads((workdir / "report" / "report.json").read_text("utf-8"))
        config = json.loads((workdir / "config.json").read_text("utf-8"))
        Look(*report["meta"]["look"])  # older reports had no clips of their own
    except FileNotFoundError as error:
        raise UserError(
            f"{workdir} has no report ({error.filename} is missing): finish it by python -m dollar_jax.main"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(f"{workdir}/report is of another version: remove it and run dollar_jax.main again") from error
    config = {name: value for name, value in config.items() if name not in MACHINE}
    leaves = jax.tree.leaves_with_path(config, is_leaf=lambda value: isinstance(value, list))
    return Run(variant, workdir, report, {jax.tree_util.keystr(p, simple=True, separator="."): v for p, v in leaves})


def _check(first: Run, run: Run) -> None:
    changed = _changed([first, run])
    if not run.variant and not first.variant and changed:
        raise UserError(
            f"{run.workdir} is no seed of {first.workdir}: {changed[0]} is {first.fields.get(changed[0])} there,"
            f" {run.fields.get(changed[0])} here; name the variants, --workdir=NAME={run.workdir}"
        )
    for what in ("captions", "look"):
        if first.report["meta"][what] != run.report["meta"][what]:
            name = {"captions": "captions", "look": "frames, height, width or fps"}[what]
            raise UserError(f"{first.workdir} and {run.workdir} have other {name}: make a report of each")


def _changed(runs: Sequence[Run]) -> list[str]:
    """The fields, those of seeds aside, that are not the same in all these runs."""
    names = sorted({name for run in runs for name in run.fields} - set(SEEDS))
    return [name for name in names if len({str(run.fields.get(name)) for run in runs}) > 1]


def _behind(groups: Mapping[str, Sequence[Run]]) -> dict:
    """The part of `meta` that says what the numbers of several runs come from."""
    runs = [run for group in groups.values() for run in group]
    firsts = {variant: group[0] for variant, group in groups.items()}
    return {
        "students": {variant: run.report["meta"]["student"] for variant, run in firsts.items()},
        "runs": [{"variant": run.variant, "seed": run.fields.get("seed"), "workdir": str(run.workdir)} for run in runs],
        "differences": {
            name: {variant: str(run.fields.get(name, "")) for variant, run in firsts.items()}
            for name in _changed(list(firsts.values()))
        },
        "configs": {
            f"{variant}: {name}" if variant else name: text
            for variant, run in firsts.items()
            for name, text in run.report["meta"]["configs"].items()
        },
    }


def _clips(groups: Mapping[str, Sequence[Run]]) -> dict:
    """The clips of the first seed of each variant, by label."""
    clips = {}
    for variant, (run, *_) in groups.items():
        meta = run.report["meta"]
        for model in meta["clips"]:
            row = {"model": model} | ({"variant": variant} if len(groups) > 1 else {})
            folder = run.workdir / "report" / "clips" / model
            clips[label(row)] = read_clips(folder, len(meta["captions"]), Look(*meta["look"]).small)
    return clips


def _curves(runs: Sequence[Run], groups: Mapping[str, Sequence[Run]]) -> list[tuple[str, dict]]:
    return [
        (
            run.variant if len(groups) > 1 else "",
            {stage: metrics.read(run.workdir / stage) for stage in run.report["meta"]["stages"]},
        )
        for run in runs
    ]
