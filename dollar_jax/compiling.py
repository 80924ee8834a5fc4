"""Programs that are compiled to be looked at, not run: the compiler's options, and signs of life meanwhile."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# On TPUs a program that does not fit is to be measured, too. On CPUs the machine code, which nobody will run, need not
# be fast: it changes nothing that is measured.
ON_CPU = {"xla_backend_optimization_level": 0}
OPTIONS = {"tpu": {"xla_tpu_no_crash_on_oom": True}, "cpu": ON_CPU, "gpu": ON_CPU}
PATIENCE = 30  # seconds between two lines while the compiler is silent


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Says on stderr what is being done, from time to time that it still is, and how long it took."""
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
