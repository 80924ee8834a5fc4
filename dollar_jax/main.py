"""python -m dollar_jax.main --config=configs/shapes.py --workdir=W: every stage the config names; again to resume.

Any field can be set: --config.generator.objectives.consistency=0.3.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dollar_jax.command import required, run
from dollar_jax.files import write_atomically
from dollar_jax.importing import UserError, resolve

_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the report; the same one resumes.")


def main() -> None:
    required(_CONFIG, _WORKDIR)
    config, workdir = _CONFIG.value, Path(_WORKDIR.value)
    stages = [resolve(name, "dollar_jax.stages") for name in config.stages]

    from dollar_jax.sharding import make_mesh  # JAX starts here, after what can be refused without it

    mesh = make_mesh(config.mesh)
    claim(workdir, json.loads(config.to_json()))
    try:
        for stage in stages:
            stage(config, workdir, mesh)
    except UserError:
        # Refused before anything was done: the corrected command shall not meet its own mistake here.
        if [path.name for path in workdir.iterdir()] == ["config.json"]:
            (workdir / "config.json").unlink()
        raise


def claim(workdir: Path, config: dict) -> None:
    """Notes in the workdir which config it belongs to.

    Raises:
      UserError: it belongs to another one.
    """
    path = workdir / "config.json"
    if path.exists():
        before, now = flatten(json.loads(path.read_text())), flatten(config)
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            key = changed[0]
            raise UserError(
                f"{workdir} belongs to another config: {key} is {before.get(key)} there, {now.get(key)} here"
                f" ({len(changed)} in all); take another --workdir"
            )
        return
    write_atomically(path, json.dumps(config, indent=2) + "\n")


def flatten(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


if __name__ == "__main__":
    run(main)
