"""The schema of report.json: reports of several runs read it, and runs may come from strangers."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from dollar_jax.errors import UserError
from dollar_jax.evaluate.measure import BETTER, TAKEN
from dollar_jax.evaluate.report_rows import REWARD, SECONDS, TEACHER
from dollar_jax.reading import require_schema

_TEXT, _TEXTS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
_COUNT, _SIZE = ({"type": "integer", "minimum": least, "maximum": 10**9} for least in (0, 1))
LARGEST = 1e100  # larger numbers have infinite sums and squares
_NUMBER = {"type": ["number", "null"], "minimum": -LARGEST, "maximum": LARGEST}
_POSITIVE = {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": LARGEST}
_FPS = _POSITIVE | {"type": "number"}
_ROW = {
    **{"model": _TEXT, "objectives": _TEXTS, "steps": _SIZE, "calls": _SIZE, "videos": _COUNT},
    SECONDS.key: _POSITIVE,
}
_COLUMN = {
    **dict.fromkeys(("label", "meaning", "unit"), _TEXT),
    "key": {"type": "string", "pattern": r"^[^\W\d]\w*\Z"},
    "better": {"enum": list(BETTER)},
    "ideal": _NUMBER,
    "shown": {"type": "boolean"},
}
_META = {
    **dict.fromkeys(("title", "student", "command", "machine"), _TEXT),
    **dict.fromkeys(("captions", "clips", "stages"), _TEXTS),
    "look": {"type": "array", "prefixItems": [*[_SIZE] * 3, _FPS], "minItems": 4, "maxItems": 4},
    "configs": {"type": "object", "additionalProperties": _TEXT},
    "runs": {"type": "array"},
}
# The page holds a clip for each number, and reports of before have none.
_MORE_META = {"variety": {"type": "array", "items": _COUNT, "maxItems": 20}}
_SCHEMA = {
    "type": "object",
    "required": ["rows", "columns", "meta"],
    "properties": {
        "rows": {
            "type": "array",
            "items": {"type": "object", "required": ["model", "videos"], "properties": _ROW},
            "minItems": 1,
        },
        "columns": {
            "type": "array",
            "items": {
                "type": "object",
                "required": list(_COLUMN),
                "properties": _COLUMN,
                "additionalProperties": False,
            },
        },
        "meta": {"type": "object", "required": list(_META), "properties": _META | _MORE_META},
    },
}
_REMEDY = "remove the report and run dollar_jax.main again"


def check(report: Mapping, path: Path) -> None:
    """Raises UserError if `report`, the content of `path`, is no report of one run by `report.write_report`."""
    require_schema(report, _SCHEMA, path, _REMEDY)
    keys = [column["key"] for column in report["columns"]]
    if strange := [key for key in keys if keys.count(key) > 1 or key in TAKEN - {REWARD.key, SECONDS.key}]:
        raise UserError(f"{path}: {strange[0][:80]!r} is a key of several columns, or reserved; {_REMEDY}")
    check_numbers(report, keys, path)
    if fault := _contradiction(report):
        raise UserError(f"{path}: {fault}; {_REMEDY}")


def check_numbers(report: Mapping, keys: Iterable[str], path: Path) -> None:
    """Raises UserError if a row of `report`, the content of `path`, has a value at one of `keys` that is no number."""
    require_schema(
        report, {"properties": {"rows": {"items": {"properties": dict.fromkeys(keys, _NUMBER)}}}}, path, _REMEDY
    )


def _contradiction(report: Mapping) -> str:
    """The first contradiction between rows and meta of a report; "" if there is none."""
    rows = {row["model"]: row for row in report["rows"]}
    meta, student = report["meta"], report["meta"]["student"]
    if meta["runs"] or any(row.keys() & {"variant", "std", "seeds"} for row in report["rows"]):
        return "it is the report of several runs, not of one"
    if len(rows) < len(report["rows"]):
        names = [row["model"] for row in report["rows"]]
        return f"there are two rows with the name {max(names, key=names.count)[:80]!r}"
    for who, name in (("teacher", TEACHER), ("student", student)):
        if name not in rows:
            return f"there is no row of the {who}"
        if lacking := [field for field in ("steps", "calls") if field not in rows[name]]:
            return f"the row of the {who} has no {lacking[0]}"
        if name not in meta["clips"]:
            return f"there are no clips of the {who}"
    if any(number >= len(meta["captions"]) for number in meta.get("variety", ())):
        return "variety names a clip that is not there"
    if strangers := [name for name in meta["clips"] if name not in rows]:
        return f"there are clips of {strangers[0][:80]!r}, which has no row"
    return ""
