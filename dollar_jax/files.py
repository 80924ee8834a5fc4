"""Files and folders: written so that a killed process leaves either the old one or the new one; read as what a stranger
hands over, which names no path outside its own folder.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dollar_jax.importing import UserError


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


def inside(folder: str | os.PathLike, name: str) -> Path:
    """The path that `name`, a stranger's word, has in the stranger's `folder`.

    A folder that the Hugging Face Hub's client downloaded, `snapshots/REVISION`, consists of links into `blobs` beside
    `snapshots`: these count as inside.

    Raises:
      UserError: `name` is absolute, has a `..`, or a link leads out of the folder.
    """
    folder = Path(folder).resolve()
    parts = name.replace("\\", "/").split("/")
    try:
        path = (folder / name).resolve() if not name.startswith("~") else Path("/")
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, half a character, a NUL
        raise UserError(f"{folder} points to {name!r}, which is no path") from error
    roots = [folder]
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots":
            roots.append(parent.parents[1] / "blobs")
            break
    if Path(name).is_absolute() or ".." in parts or not any(path.is_relative_to(root) for root in roots):
        raise UserError(f"{folder} points to {name!r}, outside itself: nothing there is read")
    return path


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file, UTF-8 with or without a byte order mark, split at line feeds only.

    Raises:
      UserError: there is no such file, or it is not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def require_space(folder: str | os.PathLike, needed: int) -> None:
    """Raises UserError if the disk that `folder` is on has less than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk is full: {folder} needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free;"
            " make room and run the same command again"
        )
