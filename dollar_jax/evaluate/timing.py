"""Time for a video, and the bound of a student's speed-up: network calls of the teacher over those of the student.

A call on an accelerator returns before its work is done. So every measurement waits for the result; without the wait a
student looks faster than its network calls allow (Tab. 4 of the paper).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from dollar_jax.pipeline import Latents, Pipeline, draw_noise
from dollar_jax.sampling import Guidance
from dollar_jax.types import Condition


class Timing(NamedTuple):
    """Seconds for one video."""

    median: float
    mean: float
    std: float


def time_in_turns(calls: Mapping[str, Callable[[], object]], videos: int, repeats: int = 10) -> dict[str, Timing]:
    """Times functions, each of which processes `videos` videos per call; a call ends when its result is ready.

    In each repeat the functions take turns, so that a slower machine affects all of them; compare medians. The first
    call of each function compiles and is not counted.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(_seconds(call))
    return {name: _timing(times, videos) for name, times in seconds.items()}


def time_warm(call: Callable[[], object], videos: int, repeats: int, budget: float = 60.0) -> Timing:
    """Times a function that has been compiled and processes `videos` videos per call.

    Once, and then as often as fits into `budget` seconds, `repeats` times at most: a large teacher takes an hour.
    """
    first = _seconds(call)
    more = min(repeats - 1, int(budget / max(first, 1e-9)))
    more = int(multihost_utils.broadcast_one_to_all(np.int32(more)))  # processes that disagree would wait for ever
    return _timing([first, *(_seconds(call) for _ in range(more))], videos)


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begun


def _timing(seconds: Sequence[float], videos: int) -> Timing:
    return Timing(*(float(of(np.array(seconds) / videos)) for of in (np.median, np.mean, np.std)))


class Sampling(NamedTuple):
    """A model with settings for sampling.

    Attributes:
      pipeline: the model.
      steps: number of steps.
      guidance: the paper's w; of two experts both.
    """

    pipeline: Pipeline
    steps: int
    guidance: Guidance

    @property
    def calls(self) -> int:
        """Number of network calls for a video; guidance (Eq. 9) needs two calls per step."""
        return self.steps * (2 if self.guidance else 1)

    def diffusion(
        self, condition: Condition, negative: Condition, noise: Latents, keys: jax.Array
    ) -> Callable[[], jax.Array]:
        """A function () -> latents of one batch; the inputs are on the device before it is called.

        It is called as by `Pipeline.videos`, so that both use one compiled program.
        """
        inputs = jax.device_put((noise, condition, negative))
        params = jax.device_put(self.pipeline.networks["transformer"][1])
        settings = self.pipeline.times(self.steps), self.guidance  # by name they would be another program to JAX
        return lambda: self.pipeline.sampler(params, *inputs, keys, *settings)


def time_parts(samplings: Mapping[str, Sampling], caption: str, videos: int, repeats: int) -> dict[str, Timing]:
    """Times the diffusion of each sampling, and "text" and "decoding", text encoder and decoder of the first one.

    The batch has `videos` videos of one caption. The other samplings need no text encoder.
    """
    first = next(iter(samplings.values())).pipeline
    captions = [caption] * videos
    noise, keys = draw_noise(first.card, 0, 1, videos)
    inputs = first.encode_text(captions), first.negative, noise, keys
    calls = {name: sampling.diffusion(*inputs) for name, sampling in samplings.items()}
    calls |= {"text": lambda: first.encode_text(captions).embedding, "decoding": lambda: first.decode_on_devices(noise)}
    return time_in_turns(calls, videos, repeats)


def speed_up(teacher: Mapping, student: Mapping) -> tuple[float | None, float]:
    """The speed-up of a student, None if it or the teacher was not timed, and its bound, the ratio of network calls.

    Args:
      teacher, student: rows of the report.
    """
    seconds = [row.get("diffusion_seconds_per_video") for row in (teacher, student)]
    return seconds[0] / seconds[1] if all(seconds) else None, teacher["calls"] / student["calls"]
