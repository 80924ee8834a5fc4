"""Seconds a video, measured with a barrier, beside what the number of network calls allows.

A launch on an accelerator returns before the work is done: timed without waiting, a student looks faster than its
network calls can be (Tab. 4 of the paper). The bound is calls of the teacher over calls of the student.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Seconds for one video."""

    median: float
    mean: float
    std: float


def time_samplers(samplers: Mapping[str, Callable[[], object]], videos: int, repeats: int = 10) -> dict[str, Timing]:
    """Times samplers that each make `videos` videos a call; what they return is waited for.

    They take turns within each repeat, so that a machine that slows down slows them all; compare the medians. One call
    of each comes first and is not counted: it compiles.
    """
    for sample in samplers.values():
        jax.block_until_ready(sample())
    seconds = {name: [] for name in samplers}
    for _ in range(repeats):
        for name, sample in samplers.items():
            begun = time.perf_counter()
            jax.block_until_ready(sample())
            seconds[name].append((time.perf_counter() - begun) / videos)
    return {name: Timing(*(float(of(times)) for of in (np.median, np.mean, np.std))) for name, times in seconds.items()}


def network_calls(steps: int, guidance: float) -> int:
    """Calls of the network for one video: guidance (the paper's w, Eq. 9) evaluates it twice a step."""
    return steps * (2 if guidance else 1)


def speed_up(teacher: Mapping, student: Mapping) -> tuple[float | None, float]:
    """How many times faster the student is, and the bound: the teacher's calls of the network over the student's.

    Both are rows of the report. The first is None where one of them was not timed.
    """
    seconds = [row.get("diffusion_seconds_per_video") for row in (teacher, student)]
    return seconds[0] / seconds[1] if all(seconds) else None, teacher["calls"] / student["calls"]
