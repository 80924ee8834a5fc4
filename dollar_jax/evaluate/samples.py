"""Folders of videos as `python -m dollar_jax.sample` writes them: `{prompt:05d}-{video}.mp4`."""

import re
from pathlib import Path
from typing import NamedTuple

from dollar_jax.importing import UserError


class Name(NamedTuple):
    """What a file's name says."""

    prompt: int  # line of the prompts file, from 0, empty lines not counted
    video: int  # which of those of this prompt, from 0

    def __str__(self) -> str:
        return f"{self.prompt:05d}-{self.video}"


def find_samples(folder: Path) -> dict[Name, Path]:
    """The videos of a folder, by prompt and by number; other files are passed over.

    Raises:
      UserError: there are none.
    """
    matches = {path: re.fullmatch(r"(\d{5,})-(\d+)\.mp4", path.name) for path in folder.glob("*.mp4")}
    samples = {Name(int(match[1]), int(match[2])): path for path, match in matches.items() if match}
    if not samples:
        raise UserError(f"{folder} has no videos named 00000-0.mp4, 00000-1.mp4, ... as dollar_jax.sample writes them")
    return dict(sorted(samples.items()))
