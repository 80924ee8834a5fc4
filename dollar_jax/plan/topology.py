"""Topologies such as `v5p:2x2x2` or `h200:8`, and the devices for which their programs are compiled."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from dollar_jax.errors import UserError, first_line
from dollar_jax.plan import gpus
from dollar_jax.plan.chips import CHIPS, Chip

# Settings of libtpu for a machine without TPU: it would search for a TPU, print long reports, and lock out other
# processes.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def parse(text: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the sides of the slice: (2, 2, 2) for `v5p:2x2x2`, (8,) for `h200:8`.

    Raises:
      UserError: the chip is unknown, or the text has another form.
    """
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology={text}: no chip {name!r}; there are {', '.join(CHIPS)}")
    chip = CHIPS[name]
    form = r"[1-9]\d*(x[1-9]\d*)+" if chip.platform == "tpu" else r"[1-9]\d*"
    if not re.fullmatch(form, shape):
        example = "v5p:2x2x2, v6e:4x4 or v5e:16x16" if chip.platform == "tpu" else f"{name}:8"
        raise UserError(f"--topology={text}: wanted a form like {example}")
    return chip, tuple(map(int, shape.split("x")))


def make_devices(text: str) -> Sequence[jax.Device]:
    """Devices of this topology: for TPUs and GPUs, abstract devices to compile for; for the CPU, this machine's.

    For GPUs that needs the package "jax[cuda12]" or "jax[cuda13]". Without it, the same number of CPU devices.

    Call it before any other function of JAX.

    Raises:
      UserError: libtpu is not installed, or does not know the slice; or JAX already runs with fewer CPU devices.
    """
    chip, sides = parse(text)
    jax.config.update("jax_platforms", "cpu")
    if chip.platform == "gpu" and any(map(importlib.util.find_spec, gpus.PLUGINS)):
        # Slices, hosts in each, GPUs in each.
        options = {"target_config": gpus.target(text.partition(":")[0]), "topology": f"1x1x{sides[0]}"}
        return topologies.get_topology_desc(text, platform="cuda", **options).devices
    if chip.platform != "tpu":
        return _cpu_devices(math.prod(sides))
    if not importlib.util.find_spec("libtpu"):
        raise UserError(f'--topology={text}: to compile for TPUs needs libtpu: pip install "jax[tpu]"')
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    host = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sides) == 1 else {}
    try:
        return topologies.get_topology_desc(text, platform="tpu", **host).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology={text}: {first_line(error)}") from error


def _cpu_devices(count: int) -> Sequence[jax.Device]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if jax.device_count() < count:
            raise UserError(f"jax runs with {jax.device_count()} CPU devices already, not {count}") from error
    return jax.devices()[:count]
