"""Files as strangers write them: their places and their JSON."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

from dollar_jax.files import inside
from dollar_jax.importing import UserError


def within(folder: str | os.PathLike, name: str) -> Path:
    """`folder / name` where `inside` allows it. What a link leads to may have no name that says its format."""
    inside(folder, name)
    return Path(folder) / name


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: the file is missing, not JSON or no object; or has NaN or infinity, which are no numbers of JSON.
    """
    path = Path(path)
    if not path.is_file():  # reading a pipe would never end
        raise UserError(f"{path} is missing")
    try:
        content = json.loads(path.read_bytes().decode(), parse_constant=_finite, parse_float=_finite)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object, but a {type(content).__name__}")
    return content


def _finite(word: str) -> float:
    if not math.isfinite(number := float(word)):
        raise ValueError(f"{word[:20]} is no finite number")
    return number


def require_schema(content: Any, schema: Mapping[str, Any], path: str | os.PathLike, remedy: str) -> None:
    """Raises UserError, which names the field, if the content of the file at `path` does not fit a JSON schema."""
    try:
        fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(content))
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; {remedy}") from error
    if fault is not None:
        name = ".".join(map(str, fault.absolute_path))
        words = " ".join(fault.message.split())[:200]
        raise UserError(f"{path}: {f'{name}: ' if name else ''}{words}; {remedy}")
