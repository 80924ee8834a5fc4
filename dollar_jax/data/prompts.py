"""Prompt files: one prompt per line. In a file *.jsonl each line is a JSON string, or an object with a "caption"."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dollar_jax.errors import UserError

MOST = 100_000  # bytes of a line, so that a file of another kind does not fill the memory


def read_prompts(path: str | os.PathLike, flag: str = "prompts") -> list[str]:
    """The prompts in a file: its lines that are not empty.

    Args:
      path: the prompt file.
      flag: the flag that named the file, for error messages.

    Raises:
      UserError: as in `stream_prompts`, or the file has no prompt.
    """
    try:
        prompts = list(stream_prompts(path))
    except UserError as error:
        raise UserError(f"--{flag}={error}") from error
    if not prompts:
        raise UserError(f"--{flag}={path} has no prompt; write one per line")
    return prompts


def count_prompts(path: str | os.PathLike) -> int:
    """The number of prompts in a file, all of whose lines are checked.

    Raises:
      UserError: as in `stream_prompts`, or the path is no file that can be read again.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is no file")
    return sum(1 for _ in stream_prompts(path))


def stream_prompts(path: str | os.PathLike) -> Iterator[str]:
    """Yields the prompts in a file, which is never in memory as a whole. Lines end at line feeds only.

    Raises:
      UserError: the file cannot be read, or a line is too long, not UTF-8 text or not the JSON that it should be; the
        message has the number of the line.
    """
    path, number = Path(path), 0
    read = _from_json if path.suffix == ".jsonl" else str
    try:
        with path.open("rb") as file:
            while line := file.readline(MOST + 1):
                number += 1
                prompt = _decoded(line, read, first=number == 1).strip()
                if prompt:
                    yield prompt
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}, line {number} {error}") from error


def _decoded(line: bytes, read, first: bool) -> str:
    """The prompt in a line, '' for none. Raises ValueError with the second half of a sentence about the line."""
    if len(line) > MOST:
        raise ValueError(f"is longer than {MOST:,} bytes")
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip()
        prompt = read(text) if text else ""
        prompt.encode()  # JSON can escape a lone surrogate
    except UnicodeError as error:
        raise ValueError(f"is not UTF-8 text: {error.reason}") from error
    if "\0" in prompt:
        raise ValueError("has a NUL byte: it is not UTF-8 text")
    return prompt


def _from_json(text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    prompt = value.get("caption") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise ValueError('is neither "a prompt" nor {"caption": "a prompt"}')
    return prompt
