"""Writes a dataset in pieces: a command that was stopped goes on with the piece that it was at.

The pieces are datasets in FOLDER.unfinished. Once all are there, their files are moved into one dataset, FOLDER. So
readers see one dataset that appears when it is complete, as `write_dataset` promises.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dollar_jax.data.dataset import FILES, NAME, Example, Source, blocks_of, bytes_of, write_dataset
from dollar_jax.data.pipeline import Rows, parts_of
from dollar_jax.errors import UserError
from dollar_jax.files import require_space
from dollar_jax.progress import Progress
from dollar_jax.reading import read_json

PIECE = 1024  # examples; a multiple of usual batch sizes, so that only the last batch of all is filled up


def origin_of(folder: str | os.PathLike) -> str:
    """What is made from a dataset is made from this: a digest of its descriptions and of the sizes of its files."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        shard = path.name.startswith(NAME)
        if shard or path.name == FILES or path.suffix == ".json":
            digest.update(repr((path.name, path.stat().st_size, b"" if shard else path.read_bytes())).encode())
    return digest.hexdigest()


class Piece(NamedTuple):
    """Some examples of a source.

    Attributes:
      place: the folder of their dataset, whose name has a digest of what they are made from.
      rows: the examples.
      part: number of the part of the source that they are in: the examples of a part are of about one size.
      there: whether they were written before.
    """

    place: Path
    rows: Rows
    part: int
    there: bool


def open_pieces(folder: str | os.PathLike, source: Source, origins: Sequence[str]) -> list[Piece]:
    """The pieces of a dataset to write, some of which may be there already.

    Args:
      folder: folder of the dataset, which does not exist yet.
      source: the examples, or what they are made from; videos come before images.
      origins: for each example of the source what it is made from; if that changes, a piece of it is not taken.
    Raises:
      UserError: pieces are there that were made from something else.
    """
    unfinished = _unfinished(folder)
    names = os.listdir(unfinished) if unfinished.is_dir() else []
    pieces, start = [], 0
    for number, part in enumerate(parts_of(source)):
        for begin in range(0, len(part), PIECE):
            rows = Rows(part, range(begin, min(begin + PIECE, len(part))))
            digest = hashlib.sha256(json.dumps(origins[start : start + len(rows)]).encode()).hexdigest()
            place = unfinished / f"{len(pieces):05d}-{digest[:16]}"
            if any(name.startswith(place.name[:6]) and name != place.name for name in names):
                raise UserError(
                    f"{unfinished} was begun from other videos, captions or settings: give them again, or remove it"
                )
            pieces.append(Piece(place, rows, number, place.name in names))
            start += len(rows)
    return pieces


def write_pieces(
    folder: str | os.PathLike,
    pieces: Sequence[Piece],
    make: Callable[[Rows], Iterator[Example]],
    info: Mapping[str, Any],
    task: str,
    writes: bool = True,
) -> int:
    """Writes the pieces that are not there, and then the dataset. Returns the number of its examples.

    Args:
      folder: folder of the dataset.
      pieces: what `open_pieces` returned.
      make: makes the examples to write from those of a piece; it may leave some out.
      info: see `write_dataset`.
      task: name of the task in messages.
      writes: False in processes that are only needed to make examples; they return 0.
    Raises:
      UserError: the disk has too little space, the folder cannot be written, or there are no examples.
    """
    missing = [piece for piece in pieces if not piece.there]
    if not writes:
        for piece in missing:
            deque(make(piece.rows), maxlen=0)
        return 0
    unfinished = _unfinished(folder)
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    total = sum(len(piece.rows) for piece in pieces)
    done = sum(len(piece.rows) for piece in pieces if piece.there)
    if done:
        print(f"{task}: {done:,} of {total:,} videos were there already", flush=True)
    progress = Progress(task, "video", total, done)
    try:
        for number, piece in enumerate(missing):
            blocks = blocks_of(progress.over(make(piece.rows)))
            if (block := next(blocks, None)) is None:
                continue  # all were left out
            left = sum(len(other.rows) for other in missing[number + 1 :] if other.part == piece.part)
            if number == 0:
                _check_estimate(unfinished, block, left + len(piece.rows), task)
            write_dataset(piece.place, itertools.chain(block, itertools.chain.from_iterable(blocks)), info)
            used = sum(file.stat().st_size for file in piece.place.iterdir())
            require_space(unfinished, int(used / len(piece.rows) * left))
    finally:
        with suppress(OSError):
            unfinished.rmdir()  # if it is empty
    return _join([piece.place for piece in pieces if piece.place.exists()], Path(folder))


def _unfinished(folder: str | os.PathLike) -> Path:
    return Path(f"{Path(folder)}.unfinished")


def _check_estimate(folder: Path, block: Sequence[Example], count: int, task: str) -> None:
    """Says how large `count` examples like those of the block are; raises UserError if the disk is surely too small.

    Numbers with a point, as of latents, are hardly compressed. How much pixels are is not known before.
    """
    size = sum(map(bytes_of, block)) / len(block)
    each, whole = f"{size / 1e6:,.1f} GB per 1,000 videos", f"{count * size / 1e9:,.1f} GB for {count:,}"
    print(f"{task}: {each}, {whole}, before compression", flush=True)
    least = sum(
        value.nbytes
        for example in block
        for value in example.values()
        if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
    )
    require_space(folder, int(least / len(block) * count))


def _join(places: Sequence[Path], folder: Path) -> int:
    """Moves the files of the pieces into one dataset, in this order. Returns the number of its examples.

    It can be stopped at any point, and called again: the descriptions of the pieces stay until all is done.
    """
    if not places:
        raise UserError(f"{folder}: nothing to write")
    joined, splits = _unfinished(folder) / "joined", {}
    joined.mkdir(exist_ok=True)
    for place in places:
        for split in read_json(place / "dataset_info.json")["splits"]:
            name = split["name"]
            whole = splits.setdefault(name, split | {"numBytes": "0", "shardLengths": []})
            whole["numBytes"] = str(int(whole["numBytes"]) + int(split["numBytes"]))
            for number, length in enumerate(split["shardLengths"]):
                file = place / _shard(name, number)
                if file.exists():  # else it was moved before
                    file.rename(joined / _shard(name, len(whole["shardLengths"])))
                whole["shardLengths"].append(length)
    for name in ("features.json", "metadata.json"):
        shutil.copyfile(places[0] / name, joined / name)
    if (places[0] / FILES).exists():
        (joined / FILES).write_bytes(b"".join((place / FILES).read_bytes() for place in places))
    described = read_json(places[0] / "dataset_info.json") | {"splits": list(splits.values())}
    (joined / "dataset_info.json").write_text(json.dumps(described, indent=2))
    joined.rename(folder)
    shutil.rmtree(_unfinished(folder))
    return sum(int(length) for split in splits.values() for length in split["shardLengths"])


def _shard(split: str, number: int) -> str:
    return f"{NAME}-{split}.array_record-{number:05d}"
