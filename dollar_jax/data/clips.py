"""A random-access source of examples from a folder of video files and images and a list of captions."""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dollar_jax.data.dataset import Dataset, Example
from dollar_jax.data.video import is_image, read_clip
from dollar_jax.errors import UserError
from dollar_jax.reading import read_lines, within

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # in a message, a terminal would obey them


def read_captions(path: str | os.PathLike, videos: str | os.PathLike) -> list[tuple[Path, str]]:
    """Reads the lines {"file": ..., "caption": ...} of captions.jsonl. Returns (path, caption) of each line.

    Args:
      path: captions.jsonl.
      videos: the folder that contains all files, directly or in subfolders.
    Raises:
      UserError: a line is wrong, or its file is missing or outside the folder; the message names the first such line.
    """
    path = Path(path)
    records = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("file", "caption")):
            raise UserError(f'{path}, line {number}: give {{"file": "...", "caption": "..."}}, both strings')
        if CONTROL.search(record["file"]):
            raise UserError(f"{path}, line {number}: the file's name has control characters; rename the file")
        try:
            file = within(videos, record["file"])
            (record["file"] + record["caption"]).encode()
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        except UnicodeEncodeError as error:  # JSON can escape a lone surrogate
            raise UserError(f"{path}, line {number}: file or caption is not valid text: {error.reason}") from error
        if not os.path.isfile(file):
            raise UserError(f"{path}, line {number}: there is no file {file}")
        records.append((file, record["caption"]))
    if not records:
        raise UserError(f"{path} names no videos")
    return records


class Clips:
    """A source of decoded files: {'video': uint8 [f height width 3], 'caption', 'file': str}; f = 1 for an image.

    Args:
      records: (path, caption) of each file.
      folder: the folder in which 'file' is a path.
      size: frames, height, width and fps, as in `read_clip`.
      skip_bad: a file that cannot be decoded or is too short becomes None and is reported on stderr, instead of raising
        UserError.
    """

    def __init__(
        self,
        records: Sequence[tuple[Path, str]],
        folder: str | os.PathLike,
        size: dict[str, float | int],
        skip_bad: bool,
    ):
        self._records, self._folder, self._size, self._skip_bad = records, folder, size, skip_bad

    def __len__(self) -> int:
        return len(self._records)

    def origin(self, index: int) -> str:
        """What an example is made from: the name and the bytes of its file, and its caption."""
        file, caption = self._records[index]
        return f"{file} {file.stat().st_size} {caption}"

    def __getitem__(self, index: int) -> Example | None:
        file, caption = self._records[index]
        try:
            name = file.relative_to(self._folder).as_posix()
            return {"video": read_clip(file, **self._size), "caption": caption, "file": name}
        except UserError as error:
            if not self._skip_bad:
                raise UserError(f"{error}; --skip_bad leaves out all such files") from error
            tqdm.write(f"left out {error}", file=sys.stderr)
            return None


def open_clips(
    records: Sequence[tuple[Path, str]], folder: str | os.PathLike, size: dict[str, float | int], skip_bad: bool
) -> Dataset:
    """A dataset of all files, videos first and then images. Arguments are as in `Clips`."""
    kinds = [[record for record in records if is_image(record[0]) == image] for image in (False, True)]
    return Dataset([Clips(kind, folder, size, skip_bad) for kind in kinds if kind], size)
