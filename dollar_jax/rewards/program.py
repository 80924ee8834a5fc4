"""A reward in any language: a program that reads requests and writes answers, one line each."""

import json
import os
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Array, Float

from dollar_jax.importing import UserError


class Program:
    """A process that is started once and then asked for rewards.

    A request is a line of JSON on its standard input, {"frames": PATH, "captions": [...]}: the file holds b videos,
    uint8 [b, f, h, w, 3] in NumPy's .npy format, until the answer is there. That is a line on its standard output, a
    JSON list of b numbers. What else it has to say goes to standard error. At the end of its input it should end.

    Args:
      command: the program and its arguments; no shell sees them.
    Raises:
      UserError: it cannot be started.
    """

    def __init__(self, command: Sequence[str]):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed when the process has ended
        pipe = subprocess.PIPE
        try:
            # In a session of its own, to be ended with all that it started.
            self._process = subprocess.Popen(
                list(command), stdin=pipe, stdout=pipe, stderr=self._errors, text=True, start_new_session=True
            )
        except OSError as error:
            self._errors.close()
            raise UserError(f"{command[0]} cannot be started ({error.strerror}): check options.command") from error
        weakref.finalize(self, _close, self._process, self._errors)

    def __call__(self, frames: Float[Array | np.ndarray, "b f h w 3"], captions: Sequence[str]) -> list:
        """What it answers.

        Raises:
          UserError: it ended, or answered something else than a list.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "frames.npy"
            np.save(path, np.rint(np.clip(np.asarray(frames), 0, 1) * 255).astype(np.uint8))
            with suppress(BrokenPipeError):  # it has ended, and says why below
                self._process.stdin.write(json.dumps({"frames": str(path), "captions": list(captions)}) + "\n")
                self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise UserError(f"the program ended with status {self._process.wait()}, {self._last_words()}")
        with suppress(json.JSONDecodeError):
            if isinstance(values := json.loads(answer), list):
                return values
        raise UserError(f"the program answered {answer.strip()[:80]!r}, no JSON list; all else goes to standard error")

    def stop(self) -> None:
        """Ends the process, and what it started."""
        _kill(self._process)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its last words: {lines[-1].strip()}" if lines else "without a word on standard error"


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _close(process: subprocess.Popen, errors: IO[bytes]) -> None:
    _kill(process)
    for file in (process.stdin, process.stdout, errors):
        with suppress(BrokenPipeError):
            file.close()


program = Program  # its name in a config
