"""Makes the plan of a distillation: the memory and time of a config on a machine."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from ml_collections import ConfigDict

from dollar_jax.errors import UserError
from dollar_jax.plan.estimate import Cost, measure
from dollar_jax.plan.programs import Program, iteration
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

    def cost(program: Program) -> Cost:
        with jax.set_mesh(mesh):  # each thread has a mesh of its own
            return measure(program, work.groups, chip, devices, predict)

    # Side by side: a compiler leaves a second core idle half of the time.
    start = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        costs = list(threads.map(cost, work.programs))
    seconds = time.perf_counter() - start
    plan = summarize(work, costs, chip, sides, dict(mesh.shape))
    plan |= {"student": student, "topology": topology, "compile_seconds": seconds}
    return plan, remedies(plan, config)
