"""Atomic writing of files and folders: a killed process leaves either the old version or the new one."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dollar_jax.errors import UserError


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a temporary file beside `path` and renames it to `path`; creates a missing folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # several hosts may write the same file
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty temporary folder, which is renamed to `path` at the end, or deleted after an exception.

    Raises:
      UserError: `path` exists already, or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already: remove it or choose another folder")
    temporary = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        # A library's thread may still write into the folder after the error that it caused.
        for _ in range(50):
            shutil.rmtree(temporary, ignore_errors=True)
            if not temporary.exists():
                break
            time.sleep(0.1)


def require_space(folder: str | os.PathLike, needed: int, purpose: str = "") -> None:
    """Raises UserError, which quotes `purpose`, if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk is full: {folder} needs {needed / 1e6:,.0f} MB{purpose}, {free / 1e6:,.0f} MB are free;"
            " make room and run the same command again"
        )
