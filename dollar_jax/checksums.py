"""Checksums of a checkpoint's files, so that a damaged checkpoint is not loaded.

`checksums.json` in a checkpoint's folder has the size and SHA-256 of every file: {"files": {name: [bytes, hex]}}. It is
written before the folder gets its final name, so a folder without it is incomplete. It detects flipped bytes and lost
files, but not forgery: whoever can write into the folder can also write the checksums.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.reading import inside, read_json

NAME = "checksums.json"
# Files without parameters, which Orbax writes after all others.
LATER = {NAME, "_CHECKPOINT_METADATA", "commit_success.txt"}


def write(folder: str | os.PathLike) -> None:
    """Writes the checksums of all files in `folder`."""
    folder = Path(folder)
    names = sorted(_files(folder) - LATER)
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock
        digests = pool.map(lambda name: _digest(folder / name), names)
        files = {name: [(folder / name).stat().st_size, digest] for name, digest in zip(names, digests, strict=True)}
    write_atomically(folder / NAME, json.dumps({"files": files}, indent=0) + "\n")


def strays(folder: str | os.PathLike, files: set[str]) -> str:
    """Describes a file in `folder` that is not one of `files`, is a pipe, or links out of the folder; '' if none."""
    try:
        for name in _files(Path(folder)):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                inside(folder, name)
            if name not in files | LATER:
                return f"{name} is not one of its files"
            if not os.path.isfile(path):  # reading it could block
                return f"{name} is no regular file"
    except UserError as error:
        return str(error)
    return ""


def listed(folder: str | os.PathLike) -> dict[str, tuple[int, str]]:
    """Reads the checksums that `write` wrote: name -> (bytes, SHA-256).

    Raises:
      UserError: the file is missing or damaged, or a link out of the folder.
    """
    path = inside(folder, NAME)
    if not path.is_file():
        raise UserError("its checksums are missing")
    try:
        files = read_json(path)["files"]
        return {str(name): (int(size), str(digest)) for name, (size, digest) in files.items()}
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("its checksums are damaged") from error


def fault(folder: str | os.PathLike, item: str = "", share: int = 0, shares: int = 1) -> str:
    """Describes the first fault in the files of a checkpoint; '' if they are intact.

    Args:
      folder: the checkpoint's folder.
      item: the subfolder whose files are verified; '' for all.
      share, shares: this process reads part `share` of `shares` equal parts of the files.
    """
    folder = Path(folder)
    try:
        files = listed(folder)
    except UserError as error:
        return str(error)
    if found := strays(folder, set(files)):
        return found
    names, there = sorted(name for name in files if not item or name.startswith(f"{item}/")), _files(folder)
    for name in names:
        path = folder / name
        if name not in there:  # nor is a path out of the folder looked at
            return f"{name} is missing"
        if path.stat().st_size != files[name][0]:
            return f"{name} has {path.stat().st_size} bytes, not {files[name][0]}"
    mine = names[share::shares]
    with ThreadPoolExecutor() as pool:
        for name, digest in zip(mine, pool.map(lambda name: _digest(folder / name), mine), strict=True):
            if digest != files[name][1]:
                return f"{name} has another checksum"
    return ""


def _files(folder: Path) -> set[str]:
    """Names of all files, relative to `folder`; a link counts as a file and is not followed."""
    found = set()
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found |= {os.path.relpath(os.path.join(parent, name), folder) for name in [*files, *links]}
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
