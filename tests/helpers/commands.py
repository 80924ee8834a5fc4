"""Runs a command of the package as a user does."""

import os
import subprocess
import sys
from pathlib import Path


def command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """`python -m dollar_jax.MODULE ARGUMENTS` in the folder `cwd`, with what it printed."""
    return subprocess.run(
        [sys.executable, "-m", f"dollar_jax.{module}", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
