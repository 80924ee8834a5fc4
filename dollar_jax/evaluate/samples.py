"""Folders of videos as `python -m dollar_jax.sample` writes them: `{prompt:05d}-{video}.mp4`."""

import re
from pathlib import Path
from typing import NamedTuple

from dollar_jax.errors import UserError
from dollar_jax.reading import inside


class Name(NamedTuple):
    """What a file's name says."""

    prompt: int  # line of the prompts file, from 0, empty lines not counted
    video: int  # which of those of this prompt, from 0

    def __str__(self) -> str:
        return f"{self.prompt:05d}-{self.video}"


def find_samples(folder: Path) -> dict[Name, Path]:
    """The videos of a folder, by prompt and by number; files of other names are passed over.

    Raises:
      UserError: there are none, one is no MP4 file, or a link leads out of the folder.
    """
    samples = {}
    for path in folder.glob("*.mp4"):
        match = re.fullmatch(r"([0-9]{5,})-([0-9]+)\.mp4", path.name)
        if match and path.stem == str(name := Name(int(match[1]), int(match[2]))):  # 000001-0 is no second 00001-0
            samples[name] = path
    if not samples:
        raise UserError(f"{folder} has no videos named 00000-0.mp4, 00000-1.mp4, ... as dollar_jax.sample writes them")
    for path in samples.values():
        _require_mp4(path)
    return dict(sorted(samples.items()))


def _require_mp4(path: Path) -> None:
    target = inside(path.parent, path.name)  # a stranger's link would show a file of the user's
    if target.is_file():  # to open a pipe would wait for ever
        with target.open("rb") as file:
            if file.read(8)[4:] == b"ftyp":
                return
    raise UserError(f"{path} is no MP4 video: convert it, or take it out of the folder")
