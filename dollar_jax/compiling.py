"""Compiler options for programs that run once or are only analysed, and progress messages while they compile."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# The machine code is not optimised: it runs once or never, and what is measured of a program does not depend on it.
ON_CPU = {"xla_backend_optimization_level": 0}
# On TPUs a program that does not fit into memory is measured too. At low effort it compiles several times as fast, and
# its temporary memory may differ by several percent from that of a run.
ON_TPU = {"xla_tpu_no_crash_on_oom": True, "exec_time_optimization_effort": -1.0}
OPTIONS = {"tpu": ON_TPU, "cpu": ON_CPU, "gpu": ON_CPU}
PATIENCE = 30  # seconds between two messages


@contextmanager
def progress(text: str) -> Iterator[None]:
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
