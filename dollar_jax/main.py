"""python -m dollar_jax.main --config=configs/shapes.py --workdir=W: runs all stages of a config, or resumes the run.

Any field can be set: --config.generator.objectives.consistency=0.3.
"""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dollar_jax.cli import out_of_memory, required, run
from dollar_jax.config import result_fields
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.importing import resolve
from dollar_jax.reading import read_json

_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the report; the same folder resumes.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if several are started by hand.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.", lower_bound=0)
_STOP_STATUS = flags.DEFINE_integer("stop_status", 0, "Exit status after SIGTERM; some schedulers need another than 0.")


def main() -> None:
    required(_CONFIG, _WORKDIR)
    config, workdir = _CONFIG.value, Path(_WORKDIR.value)
    stages = [resolve(name, "dollar_jax.stages") for name in config.stages]

    import jax  # late: a wrong call is refused before JAX starts

    from dollar_jax import distributed
    from dollar_jax.check import check
    from dollar_jax.compiling import keep_programs
    from dollar_jax.sharding import make_mesh
    from dollar_jax.train import Preempted
    from dollar_jax.watch import alone

    distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if jax.process_count() == 1:  # several processes must agree on the step, see `train`
        signal.signal(signal.SIGTERM, _stop)
    keep_programs()
    mesh = make_mesh(config.mesh)
    check(config, mesh)
    with alone(workdir) if distributed.is_main() else nullcontext(), jax.set_mesh(mesh):
        refuse_links(workdir)
        claim(workdir, json.loads(config.to_json()))
        try:
            for stage in stages:
                stage(config, workdir, mesh)
        except Preempted as saved:
            print(saved, flush=True)
            raise SystemExit(_STOP_STATUS.value) from None
        except Exception as error:
            # Nothing is trained yet: the workdir is released, so that it takes the corrected config.
            made = "*/checkpoints/*", "encoded/data*", "encoded_prompts/*"
            corrected = isinstance(error, UserError) or out_of_memory(error)
            if corrected and distributed.is_main() and not any(list(workdir.glob(pattern)) for pattern in made):
                (workdir / "config.json").unlink()
            raise


def _stop(number, frame) -> None:
    from dollar_jax.train import Preempted

    raise Preempted("stopped; the same command goes on from the last checkpoint")


def refuse_links(workdir: Path) -> None:
    """Raises UserError if there is a link in the workdir: in a stranger's workdir it may point to the user's files.

    Allowed are the links of `dollar_jax.laboratory`: `parent`, and `encoded` if it is complete, as both are only read.
    """
    for folder, folders, files in os.walk(workdir):  # follows no links
        for path in (Path(folder, name) for name in (*folders, *files)):
            if not path.is_symlink() or path == workdir / "parent":
                continue
            if path == workdir / "encoded" and ((path / "data").exists() or not path.exists()):
                continue
            raise UserError(f"{path} is a link: a run writes only into its own folders; remove the link")


def claim(workdir: Path, config: dict) -> None:
    """Writes the config into a new workdir, or compares it with the one in the workdir.

    Raises:
      UserError: the workdir belongs to another config.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            noted = read_json(path)
        except UserError as error:
            raise UserError(f"{path} is damaged ({error}): remove it if this is the run's own config") from error
        before, now = result_fields(noted), result_fields(config)
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            key = changed[0]
            raise UserError(
                f"{workdir} belongs to another config: {key} is {before.get(key)} there, {now.get(key)} here"
                f" ({len(changed)} in all); take another --workdir"
            )
        return
    write_atomically(path, json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
