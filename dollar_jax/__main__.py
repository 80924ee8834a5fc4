"""The command dollar-jax COMMAND: the same as python -m dollar_jax.COMMAND."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from dollar_jax.errors import UserError
from dollar_jax.files import new_folder

COMMANDS = {
    "main": "runs all stages of a config: trains, distils, tunes, reports; the same command again resumes",
    "sample": "samples videos from a teacher or a student",
    "convert": "public PyTorch weights to a checkpoint, and a student to PyTorch or to a LoRA file",
    "data": "video files and their captions to a dataset",
    "evaluate": "reports, diversity, VBench, time, memory, human preferences",
    "plan": "memory and time of a distillation on a machine that need not be present",
    "laboratory": "experiments for the paper's tables in the shapes world, over seeds",
}
COPY = "copies the configs that come with the package to the folder configs, here"


def main() -> None:
    command, *arguments = sys.argv[1:] or ["--help"]
    try:
        if command in COMMANDS:
            os.execv(sys.executable, [sys.executable, "-m", f"dollar_jax.{command}", *arguments])
        elif command == "configs":
            copy_configs(Path("configs"))
        elif command in ("-h", "--help"):
            rows = "\n".join(f"  {name:<12}{words}" for name, words in {"configs": COPY, **COMMANDS}.items())
            print(f"usage: dollar-jax COMMAND [flags]; COMMAND --help lists the flags\n\n{rows}")
        else:
            raise UserError(f"{command}: no such command; give one of configs, {', '.join(COMMANDS)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def copy_configs(target: Path) -> None:
    """Copies the configs out of the installed package. They are files to edit, and name each other as `configs.NAME`.

    Raises:
      UserError: `target` exists already, or the package is a checkout.
    """
    spec = importlib.util.find_spec("dollar_jax.configs")  # see setup.py
    if spec is None:
        raise UserError("this is a checkout of the repository, whose folder configs has them")
    with new_folder(target) as folder:
        shutil.copytree(spec.submodule_search_locations[0], folder, "__pycache__", dirs_exist_ok=True)
    print(f"{target}: {', '.join(sorted(file.name for file in target.glob('[!_]*')))}")


if __name__ == "__main__":
    main()
