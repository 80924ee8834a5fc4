"""Seconds a video, measured with a barrier, beside what the number of network calls allows.

A launch on an accelerator returns before the work is done: timed without waiting, a student looks faster than its
network calls can be (Tab. 4 of the paper). The bound is calls of the teacher over calls of the student.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from dollar_jax.pipeline import Latents, Pipeline, draw_noise
from dollar_jax.types import Condition


class Timing(NamedTuple):
    """Seconds for one video."""

    median: float
    mean: float
    std: float


def time_in_turns(calls: Mapping[str, Callable[[], object]], videos: int, repeats: int = 10) -> dict[str, Timing]:
    """Times functions that each work on `videos` videos a call; what they return is waited for.

    They take turns within each repeat, so that a machine that slows down slows them all; compare the medians. One call
    of each comes first and is not counted: it compiles.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            begun = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append((time.perf_counter() - begun) / videos)
    return {name: Timing(*(float(of(times)) for of in (np.median, np.mean, np.std))) for name, times in seconds.items()}


class Sampling(NamedTuple):
    """A way to make a video."""

    pipeline: Pipeline
    steps: int
    guidance: float  # the paper's w

    @property
    def calls(self) -> int:
        """Of the network for a video: guidance (Eq. 9) evaluates it twice a step."""
        return self.steps * (2 if self.guidance else 1)

    def diffusion(
        self, condition: Condition, negative: Condition, noise: Latents, keys: jax.Array
    ) -> Callable[[], jax.Array]:
        """() -> latents of one batch, whose inputs lie ready on the device."""
        inputs = jax.device_put((noise, condition, negative))
        params = jax.device_put(self.pipeline.networks["transformer"][1])
        options = {"times": self.pipeline.times(self.steps), "guidance": self.guidance}
        return lambda: self.pipeline.sampler(params, *inputs, keys, **options)


def time_parts(samplings: Mapping[str, Sampling], caption: str, videos: int, repeats: int) -> dict[str, Timing]:
    """The diffusion of each sampling, by its name, and what the first one's text encoder and decoder add to all of
    them: "text" and "decoding". `videos` of one caption are made at a time. No other text encoder is needed.
    """
    first = next(iter(samplings.values())).pipeline
    captions = [caption] * videos
    noise, keys = draw_noise(first.card, 0, 1, videos)
    inputs = first.encode_text(captions), first.negative, noise, keys
    calls = {name: sampling.diffusion(*inputs) for name, sampling in samplings.items()}
    calls |= {"text": lambda: first.encode_text(captions).embedding, "decoding": lambda: first.decode_on_devices(noise)}
    return time_in_turns(calls, videos, repeats)


def speed_up(teacher: Mapping, student: Mapping) -> tuple[float | None, float]:
    """How many times faster the student is, and the bound: the teacher's calls of the network over the student's.

    Both are rows of the report. The first is None where one of them was not timed.
    """
    seconds = [row.get("diffusion_seconds_per_video") for row in (teacher, student)]
    return seconds[0] / seconds[1] if all(seconds) else None, teacher["calls"] / student["calls"]
