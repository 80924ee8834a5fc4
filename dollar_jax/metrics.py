"""The log of a training stage: metrics.jsonl, TensorBoard events, and progress with the remaining time."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average
from jax.typing import ArrayLike
from jaxtyping import UInt8
from tqdm import tqdm

from dollar_jax import pictures
from dollar_jax.distributed import is_main
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.importing import without
from dollar_jax.reading import read_lines

with without("torch"):  # tensorboardX would import it, for seconds, to know tensors of PyTorch, which a log never gets
    from tensorboardX import SummaryWriter
    from tensorboardX.proto.summary_pb2 import Summary

QUIET = 10.0  # seconds between two lines of progress without a terminal


def read(folder: str | os.PathLike) -> list[dict]:
    """The lines of `folder/metrics.jsonl`, oldest first, without a truncated last line; [] if there is no file.

    Raises:
      UserError: a complete line is damaged.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for number, line in enumerate(read_lines(path)[:-1], 1):
        try:
            lines.append(json.loads(line))
            lines[-1]["step"] < 0  # noqa: B015 raises if the line has no number as "step"
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is damaged: remove the line to continue without it") from error
    return lines


class Logger:
    """The log of one stage. Steps count from 0; the line of step s has averages since the previous line, including s.

    `log` adds up the values on the device, so that it waits for no step. The averages are fetched and
    written only every `every` steps and at the last step. `folder` gets

      metrics.jsonl        a line {"step", "time" (Unix, s), "seconds_per_step", name: average, ...}; null: not finite
      events.out.tfevents* the same for TensorBoard, and the videos

    A stage that resumes at step `start` drops the lines of an interrupted run from `start` on. The log then has the
    same steps as a run without interruption, and the same averages if `start` is a multiple of `every`.

    All processes must call `log`; process 0 writes.
    """

    def __init__(self, folder: str | os.PathLike, stage: str, total: int, start: int, every: int):
        self._stage, self._total, self._every = stage, total, every
        self._averages: dict[str, Average] = {}
        self._began = time.perf_counter()
        self._first = self._window = None  # (step, clock) of the first step done and of the last write
        self._printed = -math.inf
        self._writes = is_main()
        if not self._writes:
            return
        self._path = Path(folder) / "metrics.jsonl"
        kept = [line for line in read(folder) if line["step"] < start]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._events = SummaryWriter(str(folder), purge_step=start)
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm(total=total, initial=start, desc=stage, file=sys.stdout, dynamic_ncols=True)

    def log(self, step: int, metrics: dict[str, ArrayLike]) -> dict[str, float]:
        """Adds the metrics of a step: numbers, or arrays, which are averaged. Steps may have different names.

        Returns:
          the averages if this step writes a line; otherwise {}.
        """
        self._averages = self._averages | _accumulate(
            {name: self._averages[name] for name in metrics if name in self._averages}, metrics
        )
        if self._first is None:
            # The first step includes compilation, so it is left out of the time per step.
            jax.block_until_ready(self._averages)
            self._first = self._window = (step, time.perf_counter())
        if (step + 1) % self._every and step + 1 != self._total:
            return {}
        averages, self._averages = jax.device_get(self._averages), {}
        scalars = {name: float(average.total / average.count) for name, average in averages.items()}
        if self._writes:
            self._write(step, scalars)
        return scalars

    def measured(self, step: int, values: dict[str, float], seconds: float, shown: Sequence[str]) -> None:
        """Writes values measured after a step as a line of their own; step -1 stands for before the first step.

        Args:
          seconds: duration of the measurement, which is left out of the time per step.
          shown: names of the values that are printed too.
        """
        if self._window is not None:
            self._first, self._window = ((number, clock + seconds) for number, clock in (self._first, self._window))
        if self._writes:
            self._append(step, values)
            finite = [name for name in shown if math.isfinite(values.get(name, math.nan))]
            words = " ".join(f"{name.rpartition('/')[2]} {values[name]:.4g}" for name in finite)
            print(f"{self._stage} {step + 1}/{self._total}  held out: {words}", flush=True)

    def alarm(self, step: int, words: str) -> None:
        """Reports an alarm after a step, on stderr and under TensorBoard's texts."""
        if self._writes:
            print(f"{self._stage} {step + 1}/{self._total}  ALARM: {words}", file=sys.stderr, flush=True)
            self._events.add_text("alarms", words, step)

    def videos(self, step: int, name: str, frames: UInt8[np.ndarray, "n f h w 3"], captions: list[str]) -> None:
        """Shows n videos side by side, animated, under TensorBoard's images, and their captions under its texts."""
        if not self._writes:
            return
        clip = pictures.side_by_side(pictures.enlarge(frames, 128))
        image = Summary.Image(
            height=clip.shape[1], width=clip.shape[2], colorspace=3, encoded_image_string=pictures.gif(clip, fps=8)
        )
        self._events.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        self._events.add_text(f"{name}/captions", "\n".join(f"{i}. {text}" for i, text in enumerate(captions, 1)), step)

    def close(self) -> None:
        if self._writes:
            self._events.close()
            if self._bar is not None:
                self._bar.close()

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        now = time.perf_counter()
        since, clock = self._window
        # A stage of one step, or one that writes at its first step, has no second step to measure a time per step.
        seconds = (now - clock) / (step - since) if step > since else now - self._began
        self._window = (step, now)
        self._append(step, {"seconds_per_step": seconds, **scalars})
        self._show(step, now, scalars)

    def _append(self, step: int, values: dict[str, float]) -> None:
        line = {"step": step, "time": time.time()} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def _show(self, step: int, now: float, scalars: dict[str, float]) -> None:
        losses = [name for name in scalars if "loss" in name] or list(scalars)
        shown = {name: f"{scalars[name]:.4g}" for name in losses[:4]}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step + 1 - self._bar.n)
            return
        remaining = self._total - step - 1
        if now - self._printed < QUIET and remaining:
            return
        self._printed = now
        first, clock = self._first
        pace = (now - clock) / (step - first) if step > first else now - self._began
        left = f"{_duration(pace * remaining)} left" if remaining else f"took {_duration(now - self._began)}"
        words = " ".join(f"{name} {value}" for name, value in shown.items())
        print(f"{self._stage} {step + 1}/{self._total}  {words}  {pace:.3g} s a step, {left}", flush=True)


@jax.jit
def _accumulate(averages: dict[str, Average], metrics: dict) -> dict[str, Average]:
    new = {name: Average.from_model_output(jnp.asarray(value, jnp.float32)) for name, value in metrics.items()}
    return {name: averages[name].merge(new[name]) if name in averages else new[name] for name in new}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
