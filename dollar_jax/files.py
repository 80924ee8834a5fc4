"""Writing files and folders so that a killed process leaves either the old one or the new one."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dollar_jax.errors import UserError


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file beside `path` and renames it; makes the folder where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # several hosts may write the same
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which appears at `path` when all went well, and not at all when something did not.

    Raises:
      UserError: there is something at `path` already, or nothing can be written there.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already: remove it or choose another folder")
    temporary = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        # A library's thread may still be writing after the error that it caused.
        for _ in range(50):
            shutil.rmtree(temporary, ignore_errors=True)
            if not temporary.exists():
                break
            time.sleep(0.1)


def require_space(folder: str | os.PathLike, needed: int) -> None:
    """Raises UserError if the disk that `folder` is on has less than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk is full: {folder} needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free;"
            " make room and run the same command again"
        )
