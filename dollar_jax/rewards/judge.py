"""Calls the reward of a config safely: every fault of the reward becomes one line with the reward's name."""

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from ml_collections import ConfigDict

from dollar_jax.errors import UserError
from dollar_jax.importing import resolve
from dollar_jax.pictures import evenly
from dollar_jax.types import Params, PerExample

Frames = Float[np.ndarray, "b f h w 3"] | UInt8[np.ndarray, "b f h w 3"]
Scores = Float32[np.ndarray, " b"]

# File name prefixes of code that is not the user's own.
LIBRARIES = ("<", str(Path(__file__).parents[1]), *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib")))
DEFAULTS = {"options": {}, "frames": 0, "timeout": 0}


class Judge:
    """The reward named by a config, constructed and called in threads of its own.

    The threads have three purposes. A signal to the process is not taken for a fault of the reward. A call that hangs
    can be left behind: Python cannot kill a thread, so the run ends with an error and the thread ends with the process.
    JAX code in the reward runs on this process's first device, outside the mesh.

    Args:
      config: {name, options, frames, timeout}; other fields are ignored. `name` is an import path: a function gets
        `options` as keyword arguments, a class is constructed with them. The reward sees `frames` frames of a video,
        evenly spaced, including the first and the last (0: all). A call may take `timeout` seconds (0: no limit).
    Attributes:
      differentiable: whether the reward has `prepare` and `score`.
      params: weights that `score` of the reward takes as `params`; {} for a reward without weights.
    Raises:
      UserError: the reward does not exist, or does not take these options.
    """

    def __init__(self, config: Mapping[str, Any] | ConfigDict):
        fields = DEFAULTS | ConfigDict(config).to_dict()
        self.name, self._frames, self._timeout = (fields[field] for field in ("name", "frames", "timeout"))
        if self._frames < 0 or self._timeout < 0:
            raise UserError(f"reward {self.name}: frames and timeout are 0 or more")
        self._reward = self._alone(partial(_make, self.name, fields["options"]))
        self.differentiable = all(hasattr(self._reward, method) for method in ("prepare", "score"))
        if not self.differentiable and not callable(self._reward):
            raise UserError(
                f"reward {self.name} has neither __call__ nor prepare and score: define __call__, or the other two"
            )
        self.params: Params = getattr(self._reward, "params", {})
        self._jitted = jax.jit(self._reward.score) if self.differentiable else None

    def __call__(self, frames: Frames, captions: Sequence[str]) -> Scores:
        """Rewards [b] of videos (uint8, or float in 0..1) with these captions.

        Raises:
          UserError: the reward raised, took longer than `timeout`, or returned anything but b finite numbers.
        """
        frames = self._thin(frames)
        frames = frames / np.float32(255) if frames.dtype == np.uint8 else frames.astype(np.float32, copy=False)
        return self._checked(self._alone(partial(self._evaluate, frames, list(captions)), self._timeout), captions)

    def require_gradient(self) -> None:
        """Raises UserError if the reward is not differentiable."""
        if not self.differentiable:
            raise UserError(
                f"reward {self.name} has no gradient (no prepare and score): take another, or a latent reward model"
            )

    def prepare(self, captions: Sequence[str]) -> Any:
        """The captions prepared for `score`: a tree of NumPy arrays [b, ...].

        Raises:
          UserError: the reward has no gradient, or its `prepare` raised.
        """
        self.require_gradient()
        return jax.tree.map(np.asarray, self._alone(partial(self._reward.prepare, list(captions)), self._timeout))

    def score(self, frames: Float[Array, "b f h w 3"], prepared: Any, params: Params | None = None) -> PerExample:
        """Rewards [b] of videos with pixels in 0..1. This method can be traced and differentiated.

        Args:
          prepared: result of `prepare` for the captions.
          params: `self.params`; given as an argument, a compiled program does not contain them as constants.
        Raises:
          UserError: the reward has no gradient.
        """
        self.require_gradient()
        weights = (self.params if params is None else params,) if self.params else ()
        return self._reward.score(self._thin(frames), prepared, *weights)

    def stop(self) -> None:
        """Stops the reward, if it has a method `stop` (an `executable` kills its process)."""
        if hasattr(self._reward, "stop"):
            self._reward.stop()

    def _evaluate(self, frames: Float32[np.ndarray, "b f h w 3"], captions: list[str]) -> Any:
        if not self.differentiable:
            return self._reward(frames, captions)
        prepared, weights = self._reward.prepare(captions), (self.params,) if self.params else ()
        # One video at a time: one shape to compile, and the memory of one video.
        rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], (frames, prepared)) for i in range(len(frames))]
        return np.concatenate([self._jitted(*row, *weights) for row in rows])

    def _thin(self, frames):
        return frames[:, evenly(frames.shape[1], self._frames)] if self._frames else frames

    def _checked(self, values: Any, captions: Sequence[str]) -> Scores:
        try:
            if np.asarray(values).dtype.kind in "US":
                raise TypeError("it is text")
            numbers = np.asarray(values, np.float32)
        except Exception as error:  # PyTorch's tensors raise various exceptions
            raise UserError(
                f"reward {self.name} returned a {type(values).__name__}, wanted numbers: {_line(error)}"
            ) from error
        if numbers.shape != (len(captions),):
            raise UserError(
                f"reward {self.name} returned a {type(values).__name__} of shape {numbers.shape}, wanted"
                f" ({len(captions)},): one number for each video"
            )
        if wrong := np.flatnonzero(~np.isfinite(numbers)).tolist():
            raise UserError(
                f"reward {self.name} returned {numbers[wrong[0]]} for {len(wrong)} of {len(captions)} videos, first for"
                f" {captions[wrong[0]]!r}: return finite numbers for every video, however bad"
            )
        return numbers

    def _alone(self, function: Callable[[], Any], timeout: float | int = 0) -> Any:
        """Returns function(), called in a thread of its own; an exception in it becomes a UserError."""
        future = Future()

        def run():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        Thread(target=run, name=f"reward {self.name}", daemon=True).start()
        done, _ = wait([future], timeout or None)
        if not done:
            self.stop()
            raise UserError(
                f"reward {self.name} took longer than {timeout:g} s: make it faster, or raise reward.timeout"
            )
        error = future.exception()
        if isinstance(error, UserError):
            raise UserError(f"reward {self.name}: {str(error).removeprefix(f'{self.name}: ')}") from error
        if error is not None:
            raise UserError(
                f"reward {self.name} raised {_line(error)}{_place(error)}: fix it there, or name another reward"
            ) from error
        return future.result()


def _make(name: str, options: Mapping[str, Any]) -> Any:
    """The function with its options bound, or the class constructed with them."""
    found = resolve(name, __package__)
    try:
        signature = inspect.signature(found)
        signature.bind(*(() if isinstance(found, type) else ("frames", "captions")), **options)
    except TypeError as error:
        raise UserError(f"its options do not fit ({error}): its docstring lists them") from error
    if isinstance(found, type):
        return found(**options)
    return partial(found, **options) if options else found


def _line(error: BaseException) -> str:
    """The exception's type and the first line of its message."""
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0]}" if message else type(error).__name__


def _place(error: BaseException) -> str:
    """' (FILE, line N)' of the innermost line of the user's own code in the traceback, '' if it has none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(LIBRARIES)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
