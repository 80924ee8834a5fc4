"""Prompt files: a prompt a line."""

import os

from dollar_jax.errors import UserError
from dollar_jax.reading import read_lines


def read_prompts(path: str | os.PathLike, flag: str = "prompts") -> list[str]:
    """The lines of a file that are not empty.

    Args:
      flag: that gave the path.

    Raises:
      UserError: no file, not text, or no prompt in it.
    """
    try:
        prompts = [line.strip() for line in read_lines(path) if line.strip()]
    except UserError as error:
        raise UserError(f"--{flag}={error}") from error
    if not prompts:
        raise UserError(f"--{flag}={path} has no prompt; write one a line")
    return prompts
