"""Processes that find each other, or are told why not; and that stop together when one of them is told to."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from email.message import Message
from pathlib import Path

import jax
import pytest

from dollar_jax import distributed
from dollar_jax.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def initialized(monkeypatch):
    """What JAX is asked to initialize: a list of keyword arguments. The environment names no cluster."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "JAX_LOCAL")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as JAX sets it where there is no TPU
    monkeypatch.delenv("JAX_PLATFORMS")
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    return calls


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # A batch script or an interactive shell, a step of one task, a step of one task in a job of many.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "node1"},
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "node1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    ],
)
def test_one_process_asks_nobody(initialized, monkeypatch, capsys, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.start(None, None, None)
    assert initialized == []
    assert capsys.readouterr().err == ""


def test_slurm_gives_one_task_a_node_all_its_devices(initialized, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    distributed.start(None, None, None)
    assert initialized == []
    assert "not started by srun" in capsys.readouterr().err

    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-4]")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x4)")
    distributed.start(None, None, None)
    assert initialized[-1].items() >= {"cluster_detection_method": "slurm", "num_processes": 4}.items()
    assert initialized[-1]["local_device_ids"] == []
    # JAX chooses the device when a node has several tasks, the user when he says so.
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "2,3")
    distributed.start(None, None, None)
    monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2)")
    distributed.start(None, None, None)
    assert all("local_device_ids" not in arguments for arguments in initialized[-2:])


@pytest.mark.parametrize(
    ("environment", "metadata", "method"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, {}, "gketpu"),
        ({}, {"worker-network-endpoints": "x:y:1.1.1.1,x:y:1.1.1.2"}, "gcetpu"),
        ({}, {"worker-network-endpoints": "a", "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\n"}, "gcetpu"),
        ({}, {"worker-network-endpoints": "a", "tpu-env": "ZONE: 'z'\n"}, None),
    ],
)
def test_tpu_slices_of_several_hosts(initialized, monkeypatch, environment, metadata, method):
    def urlopen(request, timeout):
        assert request.headers == {"Metadata-flavor": "Google"}
        assert timeout <= 10
        name = request.full_url.rpartition("/")[2]
        if name not in metadata:
            raise urllib.error.HTTPError(request.full_url, 404, "not found", Message(), io.BytesIO())
        return io.BytesIO(metadata[name].encode())

    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setattr(distributed.urllib.request, "urlopen", urlopen)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.start(None, None, None)
    assert [arguments["cluster_detection_method"] for arguments in initialized] == ([method] if method else [])

    # A run on the CPU of such a machine is not the slice's.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    distributed.start(None, None, None)
    assert len(initialized) == bool(method)


def test_a_metadata_server_that_does_not_answer_is_said(initialized, monkeypatch, capsys):
    def urlopen(request, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setattr(distributed.urllib.request, "urlopen", urlopen)
    distributed.start(None, None, None)
    assert initialized == []
    assert "metadata server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("h:1", None, None), r"--processes and --process missing"),
        (("h:1", 2, None), r"^--process missing"),
        ((None, 2, 0), r"^--coordinator missing"),
        (("h", 2, 0), "HOST:PORT"),
        (("h:port", 2, 0), "HOST:PORT"),
        (("h:70000", 2, 0), "HOST:PORT"),
        (("h:1", 2, 2), "count from 0"),
        (("h:1", 2, -1), "count from 0"),
    ],
)
def test_wrong_flags_are_named(initialized, flags, reason):
    with pytest.raises(UserError, match=reason):
        distributed.start(*flags)
    assert initialized == []


def test_flags_come_before_the_environment(initialized, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-4]")
    distributed.start("127.0.0.1:1", 1, 0)
    assert initialized == []
    address = f"127.0.0.1:{free_port()}"
    distributed.start(address, 2, 0)
    assert (
        initialized[0].items()
        >= {
            "coordinator_address": address,
            "num_processes": 2,
            "process_id": 0,
            "cluster_detection_method": "deactivate",
        }.items()
    )


def test_a_taken_port_and_an_absent_coordinator_are_named(initialized):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of this host cannot be opened"):
            distributed.start(f"127.0.0.1:{port}", 2, 0)
    with pytest.raises(UserError, match=rf"no coordinator at 127.0.0.1:{port} .*is process 0 started"):
        distributed.start(f"127.0.0.1:{port}", 2, 1, timeout=0.5)
    with pytest.raises(UserError, match=r"no coordinator at no-such-host.invalid:1 "):
        distributed.start("no-such-host.invalid:1", 2, 1, timeout=0.5)
    assert initialized == []


# Importing JAX takes longer than all that follows: one program does it, and forks.
PROGRAM = """
import json, os, sys, time
from dollar_jax import distributed, sharding, train

def run(group, process, count, port, timeout):
    if count > 1:
        distributed.start(f"127.0.0.1:{port}", count, process, timeout)

    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    assert jax.process_count() == count and distributed.is_main() == (process == 0)
    # Each process reads half of a batch, or both all of it, as of meshes whose context axis crosses processes.
    for axis, rows in [("data", [2 * process, 2 * process + 1]), ("context", [0, 1, 2, 3])] * (count > 1):
        mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {axis: 2})
        batch = train.place({"rows": np.array(rows)}, mesh)["rows"]
        assert sharding.local_rows(batch).tolist() == rows
        assert jax.jit(lambda x: x @ jnp.arange(4), out_shardings=sharding.replicated(mesh))(batch) == 14
    mesh = Mesh(np.array(jax.devices()), "d")
    ones = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("d")), np.ones(1))
    add = jax.jit(lambda total, x: total + jnp.sum(x), out_shardings=NamedSharding(mesh, PartitionSpec()))
    total = add(0.0, ones)
    for stage in range(2):  # each counts its steps from 0
        with distributed.Preemption() as preemption:
            for step in range(10**6 if stage else 3):
                time.sleep(0.02 * (1 + process))
                total = add(total, ones)
                if step == 0 and stage == 1:
                    print("ready", os.getpid(), flush=True)
                if preemption.requested():
                    print("stopped", stage, step, float(total), flush=True)
                    sys.exit(75)

folder, names = sys.argv[1], {}
for group, process, *rest in json.loads(sys.argv[2]):
    name = f"{group} {process}"
    if pid := os.fork():
        names[pid] = name
    else:
        log = os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(group, process, *rest)
codes = {}
while names:
    pid, status = os.wait()
    codes[names.pop(pid)] = os.waitstatus_to_exitcode(status)
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """(exit status, output) of each process of several small runs, some processes of which were told to stop."""
    folder = tmp_path_factory.mktemp("runs")
    told = {"one": [1], "both": [0, 1], "single": [0]}
    processes = [
        (group, process, count, port, timeout)
        for group, count, timeout in [("one", 2, 60), ("both", 2, 60), ("single", 1, 60)]
        for port in [free_port()]
        for process in range(count)
    ]
    incomplete = ("incomplete", 0, 2, free_port(), 2)  # the other never comes
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), json.dumps([*processes, incomplete])],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline, pids = time.monotonic() + 90, {}
        while len(pids) < len(processes):
            assert time.monotonic() < deadline, {path.name: path.read_text() for path in folder.iterdir()}
            time.sleep(0.05)
            ready = {path.name: re.search(r"ready (\d+)\n", path.read_text()) for path in folder.iterdir()}
            pids = {name: int(found[1]) for name, found in ready.items() if found}
        for group, numbers in told.items():
            for number in numbers:
                os.kill(pids[f"{group} {number}"], signal.SIGTERM)
        codes = json.loads(program.communicate(timeout=60)[0])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
    return {name: (code, (folder / name).read_text()) for name, code in codes.items()}


@pytest.mark.parametrize("group", ["one", "both"])
def test_two_processes_stop_at_the_same_step(ends, group):
    stops = []
    for process in range(2):
        code, output = ends[f"{group} {process}"]
        assert code == 75, output
        stops += [line for line in output.splitlines() if line.startswith("stopped 1 ")]
    assert len(stops) == 2
    assert stops[0] == stops[1]


def test_a_single_process_stops_too(ends):
    code, output = ends["single 0"]
    assert code == 75, output
    assert "stopped 1 " in output
    assert "a second one kills" in output


def test_a_run_that_stays_incomplete_ends_by_one_line(ends):
    code, output = ends["incomplete 0"]
    assert code == 2, output
    assert "not all processes came together within 2 s" in output
    assert "Check failure" not in output


def test_sigterm_is_caught_once_and_only_within():
    before, interrupt = (signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
    with distributed.Preemption() as preemption:
        assert not preemption.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested()
        assert signal.getsignal(signal.SIGTERM) == before  # the second one's
    with distributed.Preemption() as preemption:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not preemption.requested()
        assert signal.getsignal(signal.SIGINT) == interrupt
    assert signal.getsignal(signal.SIGTERM) == before
