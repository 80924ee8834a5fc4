"""Runs of several processes: how the processes find each other, and how they agree to stop.

Call `start` before any other function of JAX. The addresses of the processes come from three flags, or from the
environment as JAX reads it (Slurm; TPU slices on Compute Engine and on Kubernetes). jax.distributed is initialised only
for several processes: a laptop, a single TPU VM and a Slurm job of one task stay one process. Collectives between CPUs
use gloo, JAX's default.
"""

import itertools
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import jax
from jax.experimental import multihost_utils

from dollar_jax.errors import UserError, first_line

TIMEOUT = 300.0  # seconds for all processes of a run to come together
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


def start(coordinator: str | None, processes: int | None, process: int | None, timeout: float = TIMEOUT) -> None:
    """Connects this process with the other processes of its run; does nothing if it is the only one.

    JAX aborts a process that has waited in vain. So addresses and ports are checked first, and shortly before JAX's own
    timeout the process ends with one line and exit status 2.

    Args:
      coordinator: HOST:PORT of process 0, the same for all processes; the port is free on that host.
      processes: number of processes.
      process: index of this process, from 0.
      timeout: seconds to wait for the other processes.

    Raises:
      UserError: flags are missing or wrong, the port is taken, or the coordinator cannot be reached.
    """
    deadline = time.monotonic() + timeout
    flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        found = _detect()
        if found is None:
            return
        where, arguments = found
    elif missing:
        raise UserError(
            f"{' and '.join(missing)} missing: give --coordinator, --processes and --process, or none of them"
        )
    else:
        host, port = _address(coordinator)
        if not 0 <= process < processes:
            raise UserError(f"--process={process} is not one of --processes={processes}: they count from 0")
        if processes == 1:
            return
        if process == 0:
            _require_free(port)
        else:
            _reach(host, port, deadline)
        where = coordinator
        # In a Slurm job, JAX's own detection would restrict this process to one device.
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
    left = max(deadline - time.monotonic(), 1.0)
    watchdog = threading.Timer(left, _give_up, [where, timeout])
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=int(left) + 60)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{where}: {first_line(error)}") from error
    finally:
        watchdog.cancel()


def is_main() -> bool:
    """Whether this is process 0, which writes the files and lines of the whole run."""
    return jax.process_index() == 0


def _detect() -> tuple[str, dict] | None:
    """(description, arguments of jax.distributed.initialize) from the environment; None for a single process."""
    environment = os.environ
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)
    if tasks > 1 and "SLURM_STEP_NODELIST" not in environment:
        print(f"Slurm reserved {tasks} tasks, but this process was not started by srun: it runs alone", file=sys.stderr)
    elif tasks > 1:
        arguments = {"cluster_detection_method": "slurm", "num_processes": tasks}
        per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
        if per_node == "1" and "JAX_LOCAL_DEVICE_IDS" not in environment:
            arguments["local_device_ids"] = []  # all; JAX's own guess is one device a task
        return f"Slurm's {tasks} tasks on {environment['SLURM_STEP_NODELIST']}", arguments
    if "tpu" not in (environment.get("JAX_PLATFORMS") or "tpu"):
        return None
    if hosts := environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES"):
        method, slices = "gketpu", environment.get("MEGASCALE_NUM_SLICES")
    elif environment.get("TPU_SKIP_MDS_QUERY"):  # also set by JAX without a TPU: no metadata server answers there
        return None
    else:
        method, slices = "gcetpu", environment.get("MEGASCALE_NUM_SLICES")
        try:
            hosts = _metadata("worker-network-endpoints")
            described = dict(line.partition(":")[::2] for line in _metadata("tpu-env").splitlines())
        except OSError as error:
            print(f"this TPU's metadata server does not say whether there are more hosts: {error}", file=sys.stderr)
            return None
        slices = slices or described.get("MEGASCALE_NUM_SLICES", "").strip(" '")
    processes = len(hosts.split(",")) * int(slices or 1)
    return (f"this TPU's {processes} hosts", {"cluster_detection_method": method}) if processes > 1 else None


def _metadata(name: str) -> str:
    """An attribute of this Google Cloud machine, "" if the machine lacks it."""
    request = urllib.request.Request(METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return ""
        raise


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _require_free(port: int) -> None:
    # A service that finds its port taken ends in a segmentation fault.
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        raise UserError(
            f"port {port} of this host cannot be opened ({error.strerror}): is a run still going? Or give all processes"
            " another port in --coordinator"
        ) from error


def _reach(host: str, port: int, deadline: float) -> None:
    start = time.monotonic()
    while True:
        try:
            socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.1)).close()
            return
        except OSError as error:
            if time.monotonic() + 1 > deadline:
                raise UserError(
                    f"no coordinator at {host}:{port} for {time.monotonic() - start:.0f} s ({error.strerror or error}):"
                    " is process 0 started, is the address right, is the port open in the firewall?"
                ) from error
            time.sleep(min(1.0, max(deadline - time.monotonic() - 1, 0)))


def _give_up(where: str, timeout: float) -> None:
    print(
        f"error: {where}: not all processes came together within {timeout:.0f} s; look at the log of each: all must be"
        " started with the same command, and be able to reach process 0",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


_calls = itertools.count()  # counts over the whole program, because each stage counts its steps from 0


class Preemption:
    """Turns SIGTERM into a request to save and stop: within this context it does not kill, and `requested` is true.

    With one process, the handler sets a flag. A second SIGTERM kills as usual, and leaving the context restores the
    previous handler. With several processes, JAX catches SIGTERM from `start` to the end of every process; when one
    process gets SIGTERM, all agree on the next step that no process has passed. After that step a second SIGTERM kills.

    Ctrl-C (SIGINT) stops at once; the next run continues from the newest checkpoint.
    """

    def __init__(self) -> None:
        self._asked = False
        self._several = jax.distributed.is_initialized()

    def __enter__(self) -> "Preemption":
        if not self._several:
            self._before = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *exception) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._before)

    def requested(self) -> bool:
        """Whether to save now and stop. Every process must call it after every step; all get the same answer."""
        if not self._several:
            return self._asked
        reached = multihost_utils.reached_preemption_sync_point(next(_calls))
        if reached:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return reached

    def _note(self, number, frame) -> None:
        self._asked = True
        signal.signal(signal.SIGTERM, self._before)
        os.write(2, b"SIGTERM: will save after this step and stop; a second one kills\n")
