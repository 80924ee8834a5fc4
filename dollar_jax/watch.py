"""One run to a folder, and signs of life from each of its processes.

`alone` keeps a second run out of a workdir. `Heartbeat` tells, from outside and in the log, which process stands still:
in a run of many processes all of them wait for the slowest, so that the one whose log ends first is seldom the culprit.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax

from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically

INTERVAL = 10.0  # seconds between two signs of life
LOST = 80.0  # seconds without one, after which a process counts as dead; JAX ends the whole run after 100
PATIENCE = 6  # times as long may pass until the first step is done: it compiles
SLOW = 5  # times the duration of a step is not long
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that has none

Facts = Mapping[str, int | float | str | None]


@contextmanager
def alone(workdir: str | os.PathLike) -> Iterator[None]:
    """Keeps other runs out of `workdir`, made where it is missing, as long as the context lasts.

    The kernel gives up the lock on `workdir/.lock` when the process ends, however it ends. Of a run of many processes
    the first takes it. On some network file systems (GCS FUSE) locks are known to one machine only; where there are
    none (Lustre without -o flock), that is said, and the run goes on.

    Raises:
      UserError: another run is in there.
    """
    path = Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A workdir may be a stranger's: what a link leads to is not written over.
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path} is a link: remove it, a run writes a file of its own there") from error
    with os.fdopen(number, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{workdir} is in use by {_owner(path)}; wait for it, or take another --workdir") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(f"{workdir}: no locks on this disk ({error.strerror}): let no other run use it", file=sys.stderr)
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}) + "\n")
        file.flush()
        yield


def _owner(path: Path) -> str:
    try:
        facts = json.loads(path.read_text())
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (ValueError, KeyError, TypeError):  # it has just taken the lock
        return "another run"


class Heartbeat:
    """Signs of life of this process and, in process 0, a watch over all. A thread does it: `beat` costs nothing.

    Every `INTERVAL` seconds `folder/heartbeat/PROCESS.json` is replaced:

      process, host, pid
      step                how many are done, null before the first. JAX runs ahead of its devices: done is dispatched,
                          and the loop waits for the device where it logs
      seconds_per_step    between the last two files that differ in step, null before
      time                Unix, s

    Process 0 says on stderr, once when it begins and once when it is over, that a process gives no sign of life, or
    that no step is done any more, and which process is behind. Clocks of hosts differ: what counts is when process 0
    saw a file change.

    Args:
      folder: of the stage, on a disk that all processes share.
      silence: seconds without a step until it is said. `PATIENCE` times as much before the first step, and not less
        than `SLOW` times what a step takes.
      clock: in seconds.
      say: gets a line.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        silence: float = 300.0,
        *,
        process: int | None = None,
        processes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
    ):
        self._folder = Path(folder) / "heartbeat"
        self._process = jax.process_index() if process is None else process
        self._processes = jax.process_count() if processes is None else processes
        self._clock, self._say = clock, say or _say
        self._step: int | None = None
        self._written: tuple[float, int] | None = None  # clock and step of the last file with a new step
        self._pace: float | None = None
        self._fails = False
        self._watch = None
        if self._process == 0:
            others = {process: self._read(process) for process in range(self._processes)}
            self._watch = Watch(others, silence, clock())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def beat(self, step: int) -> None:
        """Notes that so many steps are done."""
        self._step = step

    def tick(self) -> None:
        """Writes, and in process 0 looks at the others: what the thread does every `INTERVAL` seconds."""
        try:
            self._write()
            self._fails = False
        except OSError as error:
            if not self._fails:
                self._say(f"{self._folder} cannot be written: {error}")
            self._fails = True
        if self._watch is not None:
            heard = {process: self._read(process) for process in range(self._processes)}
            for line in self._watch.look(self._clock(), heard | {0: self._facts()}):
                self._say(line)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        self._thread.join(timeout=30)  # longer only where the disk hangs

    def _run(self) -> None:
        self.tick()
        while not self._ended.wait(INTERVAL):
            self.tick()
        self.tick()

    def _facts(self) -> Facts:
        return {
            "process": self._process,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self._step,
            "seconds_per_step": self._pace,
            "time": time.time(),
        }

    def _write(self) -> None:
        now, step = self._clock(), self._step
        if step is not None:
            before, last = self._written or (now, step)
            if step > last:
                self._pace = round((now - before) / (step - last), 4)
            if self._written is None or step > last:
                self._written = (now, step)
        write_atomically(self._folder / f"{self._process}.json", json.dumps(self._facts()) + "\n")

    def _read(self, process: int) -> Facts:
        try:
            return json.loads((self._folder / f"{process}.json").read_text())
        except (OSError, ValueError):  # not there yet, or a network disk between two versions
            return {}


@dataclass
class _Process:
    facts: Facts  # what was last read
    alive: float  # when it changed
    moved: float  # when the step in it did
    step: int | None = None
    known: bool = False  # whether it changed since the start: what lay there before is of an earlier run
    lost: bool = False


class Watch:
    """Tells from what processes write which of them is dead or behind.

    Args:
      before: what the file of each process says at the start.
      silence: seconds.
      now: the clock at the start.
    """

    def __init__(self, before: Mapping[int, Facts], silence: float, now: float):
        self._seen = {process: _Process(facts, now, now) for process, facts in before.items()}
        self._silence = silence
        self._still: float | None = None  # when the last step was done, while it is said that none is any more

    def look(self, now: float, heard: Mapping[int, Facts]) -> list[str]:
        """What is to be said at `now`, where the files say `heard`; {} is a file that could not be read."""
        for process, facts in heard.items():
            seen = self._seen[process]
            if facts and facts != seen.facts:
                seen.facts, seen.alive, seen.known = facts, now, True
                if facts["step"] != seen.step:
                    seen.step, seen.moved = facts["step"], now
        return [*self._dead(now), *self._standing(now)]

    def _dead(self, now: float) -> Iterator[str]:
        for process, seen in self._seen.items():
            quiet = now - seen.alive
            limit = LOST if seen.known else PATIENCE * self._silence
            if quiet > limit and not seen.lost:
                seen.lost = True
                last = f", last at step {seen.step or 0}" if seen.known else " since the start"
                yield (
                    f"{self._name(process)} has given no sign of life for {quiet:.0f} s{last}:"
                    " it or its machine is dead, or cannot write here"
                )
            elif quiet <= limit and seen.lost:
                seen.lost = False
                yield f"{self._name(process)} gives signs of life again, at step {seen.step or 0}"

    def _standing(self, now: float) -> Iterator[str]:
        last = max(seen.moved for seen in self._seen.values())
        if self._still is not None and last > self._still:
            gap, self._still = last - self._still, None
            yield f"steps go on after {gap:.0f} s"
        if self._still is not None or any(seen.lost for seen in self._seen.values()):
            return  # said already, or said why
        steps = {process: -1 if seen.step is None else seen.step for process, seen in self._seen.items()}
        slowest, fastest = min(steps.values()), max(steps.values())
        gap = now - last
        pace = max(seen.facts["seconds_per_step"] or 0 if seen.known else 0 for seen in self._seen.values())
        if gap <= max(self._silence * (PATIENCE if slowest < 0 else 1), SLOW * pace):
            return
        self._still = last
        behind = [process for process, step in steps.items() if step == slowest]
        if slowest < fastest:
            names = ", ".join(self._name(process) for process in behind)
            done = "before its first step" if slowest < 0 else f"at step {slowest}"
            yield f"no step was done for {gap:.0f} s: {names} is behind, {done}; the others wait at {fastest}"
        elif len(steps) > 1:
            yield f"no step was done for {gap:.0f} s: all {len(steps)} processes are at step {max(slowest, 0)}"
        else:
            yield f"no step was done for {gap:.0f} s, the last was {max(slowest, 0)}"

    def _name(self, process: int) -> str:
        seen = self._seen[process]
        return f"process {process}" + (f" on {seen.facts['host']} (pid {seen.facts['pid']})" if seen.known else "")


def _say(line: str) -> None:
    print(f"heartbeat: {line}", file=sys.stderr, flush=True)
