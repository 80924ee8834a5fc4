"""Commands in processes forked from one that has imported everything: importing takes longer than most commands do."""

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

_server = multiprocessing.get_context("forkserver")
# What commands import late; not the commands themselves, each of which defines its flags.
_server.set_forkserver_preload(
    ["dollar_jax.check", "dollar_jax.stages.distill", "dollar_jax.stages.report", "dollar_jax.videos", "transformers"]
)


class Command:
    """A running `python -m dollar_jax.MODULE ARGUMENTS`, with the methods of `subprocess.Popen`.

    Args:
      arguments: module and arguments.
    """

    def __init__(self, arguments: Sequence[str | Path], environment: Mapping[str, str] = os.environ, cwd: Path = ROOT):
        self.args, self._folder = [str(argument) for argument in arguments], tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        given = self.args, dict(environment), cwd, self._streams
        self._process = _server.Process(target=_become, args=given)
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def communicate(self) -> tuple[str, str]:
        self._process.join()
        self.returncode = self.poll()
        output, errors = (path.read_text() for path in self._streams)
        self._folder.cleanup()
        return output, errors


def _become(arguments: list[str], environment: dict[str, str], cwd: Path, streams: list[Path]) -> None:
    """What `python -m dollar_jax.MODULE` does, in a new process."""
    gc.freeze()  # what has been imported is not looked through again and again, nor is what JAX traces
    gc.set_threshold(100_000, 50, 50)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, str(ROOT))
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)

    import jax  # imported before, with the environment of the server

    jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    sys.argv = arguments
    runpy.run_module(f"dollar_jax.{arguments[0]}", run_name="__main__", alter_sys=True)


def run(
    arguments: Sequence[str | Path], environment: Mapping[str, str] = os.environ, cwd: Path = ROOT
) -> subprocess.CompletedProcess:
    """Runs a command to its end, see `Command`."""
    process = Command(arguments, environment, cwd)
    streams = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, *streams)


def program(arguments: Sequence[str | Path]) -> list[str | Path]:
    """The command as a program for `subprocess`, to see it start, too."""
    module, *rest = arguments
    return [sys.executable, "-m", f"dollar_jax.{module}", *rest]


def command(module: str, **options) -> list[str]:
    """The arguments of `Command`: a module and its flags."""
    return [module, *(f"--{name}={value}" for name, value in options.items())]


def refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Asserts a refusal: one line with these words, exit status 2, no traceback."""
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    assert all(word in line for word in words), line
