"""The report of several finished runs: mean and spread over seeds, variants side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dollar_jax import metrics
from dollar_jax.config import result_fields
from dollar_jax.errors import UserError
from dollar_jax.evaluate import report_format
from dollar_jax.evaluate.measure import Column
from dollar_jax.evaluate.report import write
from dollar_jax.evaluate.report_clips import Look, read_clips
from dollar_jax.evaluate.report_rows import label, over_seeds
from dollar_jax.reading import inside, plain, read_json, within

SEEDS = ("seed", "teacher.path")  # fields in which seeds of one experiment may differ: each may have its own teacher


class Run(NamedTuple):
    """A finished run.

    Attributes:
      variant: name of its variant.
      workdir: folder of the run.
      report: content of report.json.
      fields: fields of the config by dotted name, see `config.result_fields`.
    """

    variant: str
    workdir: Path
    report: Mapping
    fields: Mapping[str, object]


def combine(runs: Sequence[tuple[str, Path]], folder: Path, command: str) -> None:
    """Writes `folder/index.html`, `report.md` and `report.json` from the reports, clips and logs in the workdirs.

    Args:
      runs: (name of the variant, workdir) of each run. Runs with one name are seeds of one variant.
      folder: folder of the new report.
      command: command that makes this report.
    Raises:
      UserError: a run has no report or a damaged one; configs of runs without a name differ in more than the seed;
        captions, size of videos, or unit or direction of a column differ; or `folder` is the report of one of the runs.
    """
    if len(runs) > 1 and folder.resolve() in [(workdir / "report").resolve() for _, workdir in runs]:
        raise UserError(f"{folder} is the report of one of the runs: choose another --out")
    read = [_read(variant, workdir) for variant, workdir in runs]
    first = read[0]
    for run in read[1:]:
        _check(first, run)
    columns = _columns(read)
    for run in read:  # a run may have a key that only another run declares as a column
        report_format.check_numbers(
            run.report, [column.key for column in columns], run.workdir / "report" / "report.json"
        )
    groups = {variant: [run for run in read if run.variant == variant] for variant, _ in runs}
    if len(read) == 1:
        rows, meta = first.report["rows"], dict(first.report["meta"])
    else:
        named = {variant: {"variant": variant} if len(groups) > 1 else {} for variant in groups}
        rows = [
            named[variant] | row
            for variant, group in groups.items()
            for row in over_seeds([run.report["rows"] for run in group], columns)
        ]
        meta = {**first.report["meta"], "command": command} | _behind(groups)
    if len(groups) == 1:
        meta["students"] = {"": first.report["meta"]["student"]}
    write(folder, rows, columns, _clips(groups), _curves(read, groups), meta)


def _read(variant: str, workdir: Path) -> Run:
    report, config = (_read_json(workdir, name) for name in ("report/report.json", "config.json"))
    report_format.check(report, workdir / "report" / "report.json")
    return Run(variant, workdir, report, result_fields(config))


def _read_json(workdir: Path, name: str) -> dict:
    path = within(workdir, name)
    if not path.is_file():
        raise UserError(f"{workdir} has no report ({path} is missing): finish the run with python -m dollar_jax.main")
    content = read_json(path)
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # a lone surrogate such as "\ud800", which UTF-8 cannot encode
        raise UserError(f"{path} has a string that is no text: {error.reason}") from error
    return content


def _check(first: Run, run: Run) -> None:
    changed = _changed([first, run])
    if not run.variant and not first.variant and changed:
        there, here = (plain(str(one.fields.get(changed[0])))[:80] for one in (first, run))
        raise UserError(
            f"{run.workdir} is no seed of {first.workdir}: {plain(changed[0])[:80]} is {there} there, {here} here;"
            f" name the variants, --workdir=NAME={run.workdir}"
        )
    for what in ("captions", "look"):
        if first.report["meta"][what] != run.report["meta"][what]:
            name = {"captions": "captions", "look": "frames, height, width or fps"}[what]
            raise UserError(f"{first.workdir} and {run.workdir} differ in {name}: make one report for each")


def _columns(runs: Sequence[Run]) -> list[Column]:
    """The columns of all runs; each is declared by the first run that has it."""
    owners = {}
    for run in runs:
        for column in (Column(**fields) for fields in run.report["columns"]):
            owner, first = owners.setdefault(column.key, (run, column))
            if (column.unit, column.better) != (first.unit, first.better):
                raise UserError(
                    f"{owner.workdir} and {run.workdir} differ in unit or direction of {column.key}: make one"
                    " report for each"
                )
    return [column for _, column in owners.values()]


def _changed(runs: Sequence[Run]) -> list[str]:
    """Names of the config fields that differ between these runs, without `SEEDS`."""
    names = sorted({name for run in runs for name in run.fields} - set(SEEDS))
    return [name for name in names if len({str(run.fields.get(name)) for run in runs}) > 1]


def _behind(groups: Mapping[str, Sequence[Run]]) -> dict:
    """The part of `meta` on the origin of the numbers: students, runs, differences and configs."""
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
            folder = inside(inside(run.workdir, "report/clips"), model)
            clips[label(row)] = read_clips(folder, len(meta["captions"]), Look(*meta["look"]).small)
    return clips


def _curves(runs: Sequence[Run], groups: Mapping[str, Sequence[Run]]) -> list[tuple[str, dict]]:
    return [
        (
            run.variant if len(groups) > 1 else "",
            {stage: _read_log(run.workdir, stage) for stage in run.report["meta"]["stages"]},
        )
        for run in runs
    ]


def _read_log(workdir: Path, stage: str) -> list[dict]:
    path = inside(workdir, f"{stage}/metrics.jsonl")
    if not path.is_file():
        return []
    lines = metrics.read(workdir / stage)
    for number, line in enumerate(lines, 1):
        for value in line.values():
            if value is not None and (type(value) not in (int, float) or abs(value) > report_format.LARGEST):
                raise UserError(f"{path}, line {number} is damaged: remove it")
    return lines
