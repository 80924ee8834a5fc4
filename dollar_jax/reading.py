"""Safe reading of files from outside: paths, text and JSON. No content can name a path outside its own folder."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema

from dollar_jax.errors import UserError

LARGEST = 64_000_000  # bytes of a JSON file; parsed, it takes ten times as much memory


def inside(folder: str | os.PathLike, name: str) -> Path:
    """The resolved path of `name`, which comes from outside, in `folder`.

    A folder downloaded by the client of the Hugging Face hub, `CACHE/REPOSITORY/snapshots/REVISION`, consists of links
    to `CACHE/REPOSITORY/blobs/NAME`. Those may be links again, to `CACHE/blobs/XX/HASH`, which repositories share. All
    these links are allowed.

    Raises:
      UserError: `name` is absolute, has a `..`, or a link leads out of the folder.
    """
    folder = Path(folder).resolve()
    parts = name.replace("\\", "/").split("/")
    try:
        path = (folder / name).resolve() if not name.startswith("~") else Path("/")
        if path.is_symlink():
            raise ValueError("a loop of links")  # before 3.13, Python raises this itself
    except (OSError, RuntimeError, ValueError) as error:  # also raised for a lone surrogate and a NUL
        raise UserError(f"{folder} points to {name!r:.200}, which is not a valid path") from error
    roots = [folder]
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots":
            repository = parent.parents[1]
            roots.append(repository / "blobs")
            if re.fullmatch(r"[0-9a-f]{64}", path.name):
                roots.append(repository.parent / "blobs" / path.name[:2] / path.name)
            break
    if Path(name).is_absolute() or ".." in parts or not any(path.is_relative_to(root) for root in roots):
        raise UserError(f"{folder} points to {name!r:.200}, outside itself: nothing there is read")
    return path


def within(folder: str | os.PathLike, name: str) -> Path:
    """`folder / name` if `inside` allows it, not resolved: the target of a link may lack the file extension."""
    inside(folder, name)
    return Path(folder) / name


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a UTF-8 text file, with or without a byte order mark, split at line feeds only.

    Raises:
      UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: the file is missing, no regular file, too large, not JSON, or not an object; or it has NaN or
        infinity, which JSON does not allow.
    """
    path = Path(path)
    if not path.is_file():  # a pipe is refused too: reading it could block
        raise UserError(f"{path} is missing")
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"{path} has {size / 1e6:,.0f} MB: more than {LARGEST / 1e6:,.0f} MB of JSON are not read")
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def parse_json(content: bytes, place: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a UTF-8 text; `place` is for the message.

    Raises:
      UserError: it is not JSON, or not an object; or it has NaN or infinity, which JSON does not allow.
    """
    try:
        parsed = json.loads(content.decode(), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {str(error)[:200]}") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{place} is not a JSON object, but a {type(parsed).__name__}")
    return parsed


def _finite(word: str) -> float:
    if not math.isfinite(number := float(word)):
        raise ValueError(f"{word[:20]} is not a finite number")
    return number


def object_schema(required: Sequence[str] = (), **properties) -> dict[str, Any]:
    """The JSON schema of an object with these fields and no others."""
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def require_schema(content: Any, schema: Mapping[str, Any], path: str | os.PathLike, remedy: str) -> None:
    """Raises UserError with the name of the field if the content of the file at `path` violates a JSON schema."""
    try:
        fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(content))
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; {remedy}") from error
    if fault is not None:
        name = ".".join(map(str, fault.absolute_path))[:200]
        name = name if name.isprintable() else repr(name)
        words = " ".join(fault.message.split())[:200]
        raise UserError(f"{path}: {f'{name}: ' if name else ''}{words}; {remedy}")


def plain(text: str) -> str:
    """The text with spaces in place of line breaks and control characters, which could be terminal commands."""
    return "".join(character if character.isprintable() else " " for character in text)
