"""python -m dollar_jax.plan --config=configs/dollar.py --topology=v5p:2x2x2: memory and time of a distillation.

The distillation of a config is compiled for a machine that need not be present. TPUs (v5e:16x16, v5p:2x2x2, v6e:4x4):
compiled ahead of time by the TPU compiler. GPUs (h200:8, h100:8, a100-80g:8, b200:8): compiled likewise where
"jax[cuda12]" or "jax[cuda13]" is installed, else estimated from a program for the same number of CPU devices. cpu:N:
the cost of a run on this machine. Any field of the config can be set, as in `dollar_jax.main`.
"""

import json
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from dollar_jax.cli import required, run
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically

_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().", lock_config=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "v5p:2x2x2, v6e:4x4, v5e:16x16, h200:8, cpu:2, ...")
_STUDENT = flags.DEFINE_string("student", None, "Name of a student in config.students; default: the last one.")
_TEACHER = flags.DEFINE_string(
    "teacher",
    "",
    "The public model to plan for, if the config names no teacher; a wrong name lists them. Default: the first.",
)
_PREDICT = flags.DEFINE_bool(
    "predict", False, "Also predict times: what the TPU compiler expects, at full effort, minutes more."
)
_OUT = flags.DEFINE_string("out", None, "JSON file for the complete plan.")


def main() -> None:
    required(_CONFIG, _TOPOLOGY)
    config = _CONFIG.value
    student = _STUDENT.value or list(config.students)[-1]
    if student not in config.students:
        raise UserError(f"--student={student}: the config has {', '.join(config.students)}")

    from dollar_jax.plan.plan import make_plan  # late: a wrong call is refused before JAX starts
    from dollar_jax.plan.report import tables

    plan, advice = make_plan(config, _TOPOLOGY.value, student, _TEACHER.value, _PREDICT.value)
    if _OUT.value:
        plan["command"] = shlex.join(["python", "-m", "dollar_jax.plan", *sys.argv[1:]])
        write_atomically(_OUT.value, json.dumps(plan, indent=2) + "\n")
    print(f"{student} on {_TOPOLOGY.value}, mesh {plan['mesh']}\n\n{tables(plan, advice)}")


if __name__ == "__main__":
    run(main)
