"""Compiled programs: kept for the next command, compiled to be analysed only, and messages while they compile."""

import hashlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The machine code is not optimised: it runs once or never, and what is measured of a program does not depend on it.
ON_CPU = {"xla_backend_optimization_level": 0}
# On TPUs a program that does not fit into memory is measured too.
ON_TPU = {"xla_tpu_no_crash_on_oom": True}
# At low effort a program compiles in half of the time or less; its temporary memory may differ by several percent from
# that of a run, and its schedule is a slower one.
LOW_EFFORT = {"exec_time_optimization_effort": -1.0}
OPTIONS = {"tpu": ON_TPU, "cpu": ON_CPU, "gpu": {}}
PATIENCE = 30  # seconds between two messages
KEPT = 4 << 30  # bytes of compiled programs on the disk; the one that was used longest ago goes first


def keep_programs() -> None:
    """Keeps compiled programs on the disk for the next command, unless JAX_COMPILATION_CACHE_DIR already says where.

    They are in the user's own folder of caches: a program is machine code, and a workdir may come from a stranger. Only
    in runs of one process: of several, JAX lets one write, and the others would wait for its disk or compile alone.
    """
    import jax  # late: a wrong call of a command is refused before JAX starts

    if jax.config.jax_compilation_cache_dir is not None or jax.process_count() > 1:
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = caches / "dollar_jax" / "programs" / _processor()
    with suppress(OSError):  # a home that cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", KEPT)


def _processor() -> str:
    """Names the kind of this machine's processor: a CPU's program runs on no other kind, and JAX does not look."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        return f"{platform.machine()}-{hashlib.sha256(repr(features).encode()).hexdigest()[:12]}"
    return f"{platform.machine()}-{platform.node()}"


@contextmanager
def announced(text: str) -> Iterator[None]:
    """Prints a task to stderr: its start, a message every `PATIENCE` seconds, and its duration."""
    start, done = time.perf_counter(), threading.Event()

    def say(more: str) -> None:
        print(f"{text}{more}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    def watch() -> None:
        while not done.wait(PATIENCE):
            say(" still")

    print(f"{text} ...", file=sys.stderr, flush=True)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    say(": done")
