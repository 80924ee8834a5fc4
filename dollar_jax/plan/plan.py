"""From a config and the name of a machine to a plan."""

from typing import Any

import jax
from ml_collections import ConfigDict

from dollar_jax.plan.estimate import measure
from dollar_jax.plan.programs import iteration
from dollar_jax.plan.report import remedies, summarize
from dollar_jax.plan.teachers import teacher_card
from dollar_jax.plan.topology import make_devices, parse
from dollar_jax.sharding import make_mesh
from dollar_jax.stages.distill import student_config


def make_plan(config: ConfigDict, topology: str, student: str, public: str) -> tuple[dict[str, Any], list[str]]:
    """The plan (see `report.summarize`) of distilling this student of a config, and remedies where it does not fit.

    Args:
      topology: see `topology.parse`.
      student: of `config.students`.
      public: see `teachers.teacher_card`.
    Raises:
      UserError: no such machine, a mesh that is not of its size, or a config that cannot be built.
    """
    chip, sides = parse(topology)
    devices = make_devices(topology)
    config = student_config(config, student)
    mesh = make_mesh(config.mesh, devices)
    card = teacher_card(config, public)
    with jax.set_mesh(mesh):
        work = iteration(config, card, mesh)
        costs = [measure(program, work.groups, chip, len(devices)) for program in work.programs]
    plan = summarize(work, costs, chip, sides, dict(mesh.shape)) | {"student": student, "topology": topology}
    return plan, remedies(plan, config)
