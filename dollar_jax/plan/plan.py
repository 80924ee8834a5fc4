"""Makes the plan of a distillation: the memory and time of a config on a machine."""

from typing import Any

import jax
from ml_collections import ConfigDict

from dollar_jax.errors import UserError
from dollar_jax.plan.estimate import measure
from dollar_jax.plan.programs import iteration
from dollar_jax.plan.report import remedies, summarize
from dollar_jax.plan.teachers import teacher_card
from dollar_jax.plan.topology import make_devices, parse
from dollar_jax.sharding import make_mesh
from dollar_jax.stages.student import student_config


def make_plan(
    config: ConfigDict, topology: str, student: str, public: str, predict: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """The plan for distilling one student of a config (see `report.summarize`), and remedies if it does not fit.

    Args:
      topology: name of the machine, see `topology.parse`.
      student: name of the student in `config.students`.
      public: name of a public teacher, see `teachers.teacher_card`.
      predict: also predict times, which only the TPU compiler can, at full effort.
    Raises:
      UserError: the machine is unknown, or no TPU whose times are to be predicted; the mesh does not have its size, or
        a network of the config cannot be built.
    """
    chip, sides = parse(topology)
    if predict and not chip.bundles:
        raise UserError(f"--predict: only the compiler of TPUs predicts times, {topology} has none: leave it out")
    devices = make_devices(topology)
    config = student_config(config, student)
    mesh = make_mesh(config.mesh, devices)
    card = teacher_card(config, public)
    with jax.set_mesh(mesh):
        work = iteration(config, card, mesh)
        costs = [measure(program, work.groups, chip, devices, predict) for program in work.programs]
    plan = summarize(work, costs, chip, sides, dict(mesh.shape)) | {"student": student, "topology": topology}
    return plan, remedies(plan, config)
