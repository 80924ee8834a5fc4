"""Prompt files: a prompt a line."""

import os
from pathlib import Path

from dollar_jax.importing import UserError


def read_prompts(path: str | os.PathLike, flag: str = "prompts") -> list[str]:
    """The lines of a file that are not empty.

    Args:
      flag: that gave the path.

    Raises:
      UserError: no file, not text, or no prompt in it.
    """
    try:
        prompts = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--{flag}={path}: {error}") from error
    if not prompts:
        raise UserError(f"--{flag}={path} has no prompt; write one a line")
    return prompts
