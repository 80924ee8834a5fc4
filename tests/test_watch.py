"""One run to a folder; who is dead, who is behind, told once and by the watcher's own clock."""

import errno
import fcntl
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dollar_jax import watch
from dollar_jax.errors import UserError
from dollar_jax.watch import LOST, PATIENCE, SLOW, Heartbeat, Watch, alone

ROOT = Path(__file__).parents[1]
SILENCE = 300.0


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "new" / "run"
    with alone(folder):
        with pytest.raises(
            UserError, match=rf"process {os.getpid()} on {socket.gethostname()}, since 20\d\d-"
        ) as error:
            alone(folder).__enter__()
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)
        # The one that was refused leaves the owner's name alone.
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
        with alone(tmp_path / "other"):
            pass
    with alone(folder):
        pass
    with alone(folder), pytest.raises(UserError, match=f"process {os.getpid()} on "):  # the last owner's name only
        alone(folder).__enter__()
    with pytest.raises(ZeroDivisionError), alone(folder):
        1 / 0  # noqa: B018
    with alone(folder):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path):
    # Nothing of the program runs after SIGKILL: the kernel releases it. Without JAX, which takes seconds to import.
    program = """
import sys, types
sys.modules["jax"] = types.ModuleType("jax")
from dollar_jax.watch import alone
with alone(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=f"process {run.pid} on "):
        alone(tmp_path).__enter__()
    run.kill()
    run.communicate()
    with alone(tmp_path):
        pass


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(watch.fcntl, "flock", flock)
    number = errno.EOPNOTSUPP
    with alone(tmp_path):
        assert "no locks on this disk" in capsys.readouterr().err
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        alone(tmp_path).__enter__()
    assert fcntl.flock is flock


def facts(process, step, time=0.0, pace=1.0):
    host = f"node{process}"
    return {"process": process, "host": host, "pid": 40 + process, "step": step, "seconds_per_step": pace, "time": time}


class Run:
    """Processes whose files are looked at every ten seconds."""

    def __init__(self, count, before=None):
        self.now, self.count = 1000.0, count
        self.watch = Watch(before or {process: {} for process in range(count)}, SILENCE, self.now)

    def pass_(self, seconds, steps, silent=(), pace=1.0):
        """Lines said, where each process is at its step and all but the silent ones write."""
        lines = []
        for _ in range(int(seconds / 10)):
            self.now += 10
            heard = {p: facts(p, steps[p], self.now, pace) for p in range(self.count) if p not in silent}
            lines += self.watch.look(self.now, heard)
        return lines


def test_the_process_behind_is_named_once_and_when_steps_go_on():
    run = Run(4)
    assert run.pass_(60, [100] * 4) == []
    assert run.pass_(10, [120, 120, 119, 120]) == []
    assert run.pass_(300, [120, 120, 119, 120]) == []
    (line,) = run.pass_(1000, [120, 120, 119, 120])
    assert "no step was done for 310 s: process 2 on node2 (pid 42) is behind, at step 119" in line
    assert "120" in line.partition("119")[2]
    (line,) = run.pass_(10, [120, 120, 120, 120])
    assert line == "steps go on after 1310 s"
    assert run.pass_(300, [121] * 4) == []
    # A second incident is a new one.
    (line,) = run.pass_(600, [121] * 4)
    assert "all 4 processes are at step 121" in line


def test_a_dead_process_is_named_and_its_return():
    run = Run(3)
    assert run.pass_(30, [7, 7, 7]) == []
    assert run.pass_(LOST, [7, 7, 7], silent=[1]) == []
    (line,) = run.pass_(2 * SILENCE, [8, 7, 8], silent=[1])  # that nothing moves is not said too: it is no wonder
    assert line.startswith("process 1 on node1 (pid 41) has given no sign of life for 90 s, last at step 7: ")
    lines = run.pass_(10, [9, 9, 9])
    assert lines[0] == "process 1 on node1 (pid 41) gives signs of life again, at step 9"


def test_files_of_an_earlier_run_are_not_signs_of_life():
    earlier = {p: facts(p, 500) | {"host": "elsewhere"} for p in range(2)}
    run = Run(2, earlier)
    lines = []
    for _ in range(int(PATIENCE * SILENCE / 10) + 1):
        run.now += 10
        lines += run.watch.look(run.now, {0: facts(0, 3 + run.now, run.now), 1: earlier[1]})
    (line,) = lines
    assert line.startswith("process 1 has given no sign of life for 1810 s since the start")


def test_the_first_step_and_slow_steps_have_time():
    run = Run(2)
    assert run.pass_(PATIENCE * SILENCE, [None, None], pace=None) == []
    (line,) = run.pass_(10, [None, None], pace=None)
    assert "all 2 processes are at step 0" in line
    run = Run(2)
    run.pass_(10, [5, None], pace=None)
    (line,) = run.pass_(PATIENCE * SILENCE + 20, [5, None], pace=None)
    assert "process 1 on node1 (pid 41) is behind, before its first step" in line
    run = Run(1)
    run.pass_(10, [5])
    assert run.pass_(SLOW * 200, [5], pace=200.0) == []
    (line,) = run.pass_(10, [5], pace=200.0)
    assert line == "no step was done for 1010 s, the last was 5"


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def test_files_say_where_each_process_is(tmp_path):
    clock, said = Clock(), []
    first, second = (
        Heartbeat(tmp_path, SILENCE, process=process, processes=2, clock=clock, say=said.append) for process in range(2)
    )
    written = tmp_path / "heartbeat"
    second.tick()
    content = json.loads((written / "1.json").read_text())
    assert content["step"] is None
    assert content["seconds_per_step"] is None
    assert (content["process"], content["host"], content["pid"]) == (1, socket.gethostname(), os.getpid())
    for step in (10, 14):
        clock.now += 10
        first.beat(step)
        second.beat(step)
        first.tick()
        second.tick()
    content = json.loads((written / "1.json").read_text())
    assert (content["step"], content["seconds_per_step"]) == (14, 2.5)
    assert sorted(path.name for path in written.iterdir()) == ["0.json", "1.json"]
    clock.now += 10
    first.tick()
    second.tick()
    assert json.loads((written / "1.json").read_text())["seconds_per_step"] == 2.5  # no step since: the last pace

    # The second process dies; the time it wrote itself does not count, only when the first saw it.
    for _ in range(20):
        clock.now += 10
        first.beat(15)
        first.tick()
    (line,) = said
    assert line.startswith(f"process 1 on {socket.gethostname()} (pid {os.getpid()}) has given no sign of life for ")


def test_a_disk_that_fails_is_said_once_and_does_not_end_the_run(tmp_path, monkeypatch):
    said, heartbeat = [], None

    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    heartbeat = Heartbeat(tmp_path, SILENCE, process=0, processes=1, clock=Clock(), say=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(watch, "write_atomically", fail)
        heartbeat.tick()
        heartbeat.tick()
    assert len(said) == 1
    assert "No space left" in said[0]
    heartbeat.tick()
    assert json.loads((tmp_path / "heartbeat" / "0.json").read_text())["step"] is None
    (tmp_path / "heartbeat" / "0.json").write_text('{"proc')
    heartbeat.tick()


def test_a_thread_does_it(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    seconds, said, lines = itertools.count(0.0, 100.0), threading.Event(), []

    def say(line):
        lines.append(line)
        said.set()

    heartbeat = Heartbeat(tmp_path, SILENCE, clock=lambda: next(seconds), say=say)
    heartbeat.beat(3)
    with heartbeat:
        assert said.wait(10)
    assert lines[0].endswith("the last was 3")
    assert json.loads((tmp_path / "heartbeat" / "0.json").read_text())["step"] == 3
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
