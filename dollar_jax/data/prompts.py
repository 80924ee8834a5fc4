"""Prompt files: one prompt per line."""

import os

from dollar_jax.errors import UserError
from dollar_jax.reading import read_lines


def read_prompts(path: str | os.PathLike, flag: str = "prompts") -> list[str]:
    """The prompts in a file: its lines that are not empty.

    Args:
      path: the prompt file.
      flag: the flag that named the file, for error messages.

    Raises:
      UserError: the file is missing, is not UTF-8 text, or has no prompt.
    """
    try:
        prompts = [line.strip() for line in read_lines(path) if line.strip()]
    except UserError as error:
        raise UserError(f"--{flag}={error}") from error
    if not prompts:
        raise UserError(f"--{flag}={path} has no prompt; write one per line")
    return prompts
