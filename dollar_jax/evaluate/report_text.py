"""The report in Markdown, without pictures."""

from collections.abc import Mapping, Sequence

from dollar_jax.evaluate.measure import Column
from dollar_jax.evaluate.report_rows import SHORT, TEACHER, label, show, shown
from dollar_jax.evaluate.timing import speed_up
from dollar_jax.reading import plain


def make_text(rows: Sequence[Mapping], columns: Sequence[Column], meta: Mapping) -> str:
    """The report: table of rows, meaning of columns, runs and differences. See `report.write` for the arguments."""
    columns = shown(columns, rows)
    teachers = {row.get("variant", ""): row for row in rows if row["model"] == TEACHER}
    seeds = any("seeds" in row for row in rows)
    names = [column.label for column in columns]
    head = ["Model", "Objectives", "Steps", "Calls", "Speed-up (bound)", *names, "Videos", *["Seeds"] * seeds]
    table = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for row in rows:
        objectives = " + ".join(SHORT.get(name, name) for name in row.get("objectives") or ())
        numbers = [show(row.get(column.key), column.unit, row.get("std", {}).get(column.key)) for column in columns]
        calls = [row.get("steps") or "", row.get("calls") or "", _speed_up(teachers[row.get("variant", "")], row)]
        counts = [row.get("videos") or "", *[row.get("seeds", 1)] * seeds]
        table.append([label(row), objectives, *calls, *numbers, *counts])
    lines = [f"# {meta['title']}", "", *map(_line, table), ""]
    if seeds:
        lines += ["± is the standard deviation over seeds.", ""]
    lines += [f"- {', '.join(filter(None, (column.label, column.good)))}: {column.meaning}" for column in columns]
    lines += ["- Bound: the teacher's network calls divided by the model's, the largest possible speed-up.", ""]
    if meta["runs"]:
        lines += ["## Runs", "", *map(_line, [["Variant", "Seed", "Workdir"], ["---", "---:", "---"]])]
        lines += [_line([run["variant"], run["seed"], f"`{run['workdir']}`"]) for run in meta["runs"]]
        lines += ["", *_differences(meta)]
    lines += ["## Command", ""]
    command, machine = f"    {plain(meta['command'])}", f"Timed on {meta['machine']}."
    return "\n".join([*map(_harmless, lines), command, "", _harmless(machine), ""])


def _harmless(line: str) -> str:
    return plain(line).replace("<", "&lt;").replace("](", "]\\(")  # names and titles may be a stranger's HTML, links


def _differences(meta: Mapping) -> list[str]:
    """The section with the fields in which the configs of the variants differ."""
    if not meta["differences"]:
        return []
    variants = list(meta["students"])
    lines = [["Field", *variants], ["---"] * (len(variants) + 1)]
    lines += [[f"`{field}`", *(values.get(v, "") for v in variants)] for field, values in meta["differences"].items()]
    return ["## Differences", "", *map(_line, lines), ""]


def _speed_up(teacher: Mapping, row: Mapping) -> str:
    if not row.get("calls"):
        return ""
    times, bound = speed_up(teacher, row)
    return f"({bound:.3g})" if times is None else f"\N{MULTIPLICATION SIGN} {times:.1f} ({bound:.3g})"


def _line(cells: Sequence) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"
