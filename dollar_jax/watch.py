"""The lock of a workdir, and the heartbeat of each process.

`alone` keeps a second run out of a workdir. `Heartbeat` reports, in files and in the log, which process hangs: all
processes of a run wait for the slowest, so the process whose log ends first is seldom the culprit.
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

INTERVAL = 10.0  # seconds between two heartbeats
LOST = 80.0  # seconds without a heartbeat after which a process counts as dead; JAX ends the whole run after 100
PATIENCE = 6  # factor on the allowed silence before the first step, which includes compilation
SLOW = 5  # the allowed silence is at least this many times the duration of a step
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # errors of a file system without locks

Facts = Mapping[str, int | float | str | None]


@contextmanager
def alone(workdir: str | os.PathLike) -> Iterator[None]:
    """Locks `workdir`, created if it is missing, against other runs within this context.

    The lock is on `workdir/.lock`; the kernel releases it when the process ends, for whatever reason. In a run of
    several processes, process 0 takes the lock. On some network file systems (GCS FUSE) other machines do not see it.
    On a file system without locks (Lustre without -o flock), a warning is printed and the run continues.

    Raises:
      UserError: another run holds the lock.
    """
    path = Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A workdir may come from outside: a link in it must not make us overwrite its target.
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
    except (ValueError, KeyError, TypeError):  # the other run has just taken the lock and not yet written the file
        return "another run"


class Heartbeat:
    """Writes the heartbeat of this process and, in process 0, watches the heartbeats of all processes.

    A thread does the work; `beat` costs nothing. Every `INTERVAL` seconds it replaces `folder/heartbeat/PROCESS.json`:

      process, host, pid
      step                number of steps done, null before the first. A step counts as done when it is dispatched and
                          the one before has ended on the device
      seconds_per_step    between the last two files with different steps, null before
      time                Unix, s

    Process 0 reports on stderr a process without heartbeat, and the process that is behind when no step is done any
    more: one line when the condition begins, one when it ends. Clocks of hosts differ, so the age of a file is the time
    since process 0 saw it change.

    Args:
      folder: the stage's folder, on a disk that all processes share.
      silence: seconds without a step until process 0 reports it; `PATIENCE` times as long before the first step, and at
        least `SLOW` times the duration of a step.
      process, processes: index of this process and number of processes; by default JAX's.
      clock: () -> seconds.
      say: called with each line of the report; by default prints it on stderr.
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
        """Notes the number of steps that are done."""
        self._step = step

    def tick(self) -> None:
        """Writes this process's file and, in process 0, checks all files; called every `INTERVAL` seconds."""
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
        self._thread.join(timeout=30)  # it takes longer only if the disk hangs

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
    facts: Facts  # content of the file when it was last read
    alive: float  # clock when the content changed
    moved: float  # clock when the step in it changed
    step: int | None = None
    known: bool = False  # whether the content changed since the start; before, it is an earlier run's
    lost: bool = False


class Watch:
    """Finds dead and slow processes from the content of their heartbeat files.

    Args:
      before: process -> content of its file at the start.
      silence: seconds, see `Heartbeat`.
      now: the clock at the start.
    """

    def __init__(self, before: Mapping[int, Facts], silence: float, now: float):
        self._seen = {process: _Process(facts, now, now) for process, facts in before.items()}
        self._silence = silence
        self._still: float | None = None  # clock of the last step, once its silence was reported

    def look(self, now: float, heard: Mapping[int, Facts]) -> list[str]:
        """Lines to report at the clock `now`; `heard` is process -> content of its file, {} if it could not be read."""
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
            return  # reported already, or explained by a dead process
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
