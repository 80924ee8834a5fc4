"""Reads folders of videos written by `python -m dollar_jax.sample`: `{prompt:05d}-{video}.mp4`."""

import re
from pathlib import Path
from typing import NamedTuple

from dollar_jax.errors import UserError
from dollar_jax.reading import inside


class Name(NamedTuple):
    """The parts of a file's name."""

    prompt: int  # index of the prompt in its file, from 0, without empty lines
    video: int  # index of the video among those of the prompt, from 0

    def __str__(self) -> str:
        return f"{self.prompt:05d}-{self.video}"


def find_samples(folder: Path) -> dict[Name, Path]:
    """The videos of a folder, sorted by prompt and video; files with other names are ignored.

    Raises:
      UserError: there is no video, a video is not an MP4 file, or a link leads out of the folder.
    """
    samples = {}
    for path in folder.glob("*.mp4"):
        match = re.fullmatch(r"([0-9]{5,})-([0-9]+)\.mp4", path.name)
        if match and path.stem == str(name := Name(int(match[1]), int(match[2]))):  # 000001-0 must not count as 00001-0
            samples[name] = path
    if not samples:
        raise UserError(f"{folder} has no videos named 00000-0.mp4, 00000-1.mp4, ... as dollar_jax.sample writes them")
    for path in samples.values():
        _require_mp4(path)
    return dict(sorted(samples.items()))


def _require_mp4(path: Path) -> None:
    target = inside(path.parent, path.name)  # a link from outside could show another file of the user
    if target.is_file():  # opening a pipe would block
        with target.open("rb") as file:
            if file.read(8)[4:] == b"ftyp":
                return
    raise UserError(f"{path} is not an MP4 video: convert it, or remove it from the folder")
