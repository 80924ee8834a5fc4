"""A reward in any language: a program that reads one line for each request and writes one line for each answer."""

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import tempfile
import termios
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Array, Float

from dollar_jax.errors import UserError
from dollar_jax.pictures import to_8_bits

LONGEST = 1024  # bytes that one number of an answer may take: more than any float needs, but bounded
SHOWN = 200  # characters of the program's standard error in a message


class Executable:
    """A reward computed by another process, which is started once.

    A request is a line of JSON on the process's standard input, {"frames": PATH, "captions": [...]}. The file at PATH
    holds b videos, uint8 [b, f, h, w, 3] in NumPy's .npy format, and is deleted after the answer. The answer is a line
    on standard output, a JSON list of b numbers. All other output belongs on standard error. The process should exit at
    the end of its standard input.

    Args:
      command: the program and its arguments, started without a shell.
    Raises:
      UserError: the program cannot be started.
    """

    def __init__(self, command: Sequence[str]):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed when the process has ended
        pipe = subprocess.PIPE
        try:
            # In a session of its own, so that `stop` can also kill the processes that it started.
            self._process = subprocess.Popen(
                list(command), stdin=pipe, stdout=pipe, stderr=self._errors, start_new_session=True
            )
        except OSError as error:
            self._errors.close()
            raise UserError(f"{command[0]} cannot be started ({error.strerror}): check options.command") from error
        weakref.finalize(self, _close, self._process, self._errors)
        self._output = select.poll()
        self._output.register(self._process.stdout, select.POLLIN)

    def __call__(self, frames: Float[Array | np.ndarray, "b f h w 3"], captions: Sequence[str]) -> list[float]:
        """The b rewards in the program's answer.

        Raises:
          UserError: the program ended, wrote before it had read the request, or wrote anything but one list of numbers.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "frames.npy"
                np.save(path, to_8_bits(frames))
                self._ask(json.dumps({"frames": str(path), "captions": list(captions)}))
                return _numbers(self._answer(len(captions)))
        except UserError:
            self.stop()  # later output must not be taken for the next answer
            raise

    def stop(self) -> None:
        """Kills the process and all processes that it started."""
        _kill(self._process)

    def _ask(self, request: str) -> None:
        with suppress(BrokenPipeError):  # the process has ended: `_answer` reports why
            self._write(request)
            # The end of the line is sent once the process has read the rest: output before that answers no request.
            while _unread(self._process.stdin) and not self._output.poll(1):  # millisecond
                pass
            if _unread(self._process.stdout):
                words = os.read(self._process.stdout.fileno(), SHOWN).decode(errors="backslashreplace")
                raise UserError(f"the program wrote {words[:80]!r} before the request: write one line for each request")
            self._write("\n")

    def _answer(self, count: int) -> bytes:
        """The line of the answer to a request for `count` rewards."""
        answer, most = b"", LONGEST * (count + 1)
        while b"\n" not in answer:
            if not (part := os.read(self._process.stdout.fileno(), most)):
                raise UserError(f"the program ended with status {self._process.wait()}, {self._last_words()}")
            answer += part
            if len(answer) > most:
                raise UserError(f"the program answered {count} videos by more than {most} bytes without an end of line")
        answer, _, rest = answer.partition(b"\n")
        if rest or _unread(self._process.stdout):
            raise UserError("the program wrote more than one line: write one line for each request")
        return answer

    def _write(self, text: str) -> None:
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def _last_words(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        words = "".join(filter(str.isprintable, lines[-1])).strip() if lines else ""
        return f"its standard error ends with: {words[:SHOWN]}" if words else "without a word on standard error"


def _numbers(answer: bytes) -> list[float]:
    with suppress(ValueError, RecursionError):
        values = json.loads(answer.decode(), parse_int=float)
        if isinstance(values, list) and all(isinstance(value, float) for value in values):
            return values
    words = answer.strip()[:80].decode(errors="backslashreplace")
    raise UserError(f"the program answered {words!r}, not a JSON list of numbers: write all else to standard error")


def _unread(pipe: IO[bytes]) -> int:
    """Number of bytes in a pipe that are written and not yet read."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _close(process: subprocess.Popen, errors: IO[bytes]) -> None:
    _kill(process)
    for file in (process.stdin, process.stdout, errors):
        with suppress(BrokenPipeError):
            file.close()


executable = Executable  # its name in a config
