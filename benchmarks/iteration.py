"""One iteration of a distillation on the devices at hand, with random weights: time, FLOP/s, memory, a profile.

    python -m benchmarks.iteration --config=configs/dollar.py --config.generator.batch_size=1 \\
        --config.generator.accumulate=1 --config.reward.batch_size=1           under eight minutes on one H200
    python -m benchmarks.iteration --config=configs/shapes.py            on a laptop

Arithmetic is counted from the program. Beside it stands the rate of a large product of bfloat16 matrices (float32 on a
CPU) in the same run: what a matrix unit gives here, whatever its data sheet says.
"""

import collections
import gzip
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from dollar_jax.cli import required, run
from dollar_jax.plan import flops
from dollar_jax.plan.programs import device_bytes, iteration
from dollar_jax.plan.teachers import teacher_card
from dollar_jax.sharding import make_mesh
from dollar_jax.stages.student import student_config

REPEATS = 5
_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().", lock_config=True)
_STUDENT = flags.DEFINE_string("student", None, "Of config.students; the last one if not given.")
_TEACHER = flags.DEFINE_string(
    "teacher", "", "The public model, if the config names no teacher; default: its own or the first."
)


def main() -> None:
    required(_CONFIG)
    student = _STUDENT.value or list(_CONFIG.value.students)[-1]
    config = student_config(_CONFIG.value, student)
    for name in ("batch_size", "accumulate"):  # the student's own changes give way to the command line
        config.generator[name] = _CONFIG.value.generator[name]
    rate = matrix_rate()
    print(
        f"{jax.devices()[0].device_kind} x {jax.device_count()}: matrix products at {rate / 1e12:.3g} TFLOP/s",
        flush=True,
    )
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        work = iteration(config, teacher_card(config, _TEACHER.value), mesh)
        print(f"{device_bytes(work.resident) / 1e9:.2f} GB lie on each device all the while", flush=True)
        measure(work, rate)


def matrix_rate() -> float:
    """FLOP/s of one device."""
    on_cpu = jax.default_backend() == "cpu"
    size, dtype = (2048, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / median_seconds(lambda: product(x))


def median_seconds(call) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(work, rate: float) -> None:
    """Every program on random numbers, REPEATS times; then one profile of the first."""
    state, frozen, first, key = (materialize(part) for part in work.programs[0].arguments)
    total, arithmetic = 0.0, 0

    def runner(program):
        if program.name.endswith(": decode"):
            arguments = tuple(materialize(part) for part in program.arguments)
            return lambda: program.step(*arguments)
        # Steps with a batch like the first one's share it, for memory's sake.
        like_first = program.arguments[2] == work.programs[0].arguments[2]
        batch = first if like_first else materialize(program.arguments[2])
        if program.name.endswith(": propose"):
            return lambda: program.step(state, frozen, batch, key)

        def call():
            nonlocal state
            state, metrics = program.step(state, frozen, batch, key)
            return metrics

        return call

    print(f"{'program':20}{'times':>6}{'s':>10}{'TFLOP':>10}{'TFLOP/s':>10}{'of products':>13}{'compiled in s':>15}")
    for program in work.programs:
        count = (
            flops.count(program.step.trace(*program.arguments).jaxpr, lambda path: "all")["all"] / jax.device_count()
        )
        call = runner(program)
        start = time.perf_counter()
        jax.block_until_ready(call())
        compiled = time.perf_counter() - start
        seconds = median_seconds(call)
        total, arithmetic = total + program.times * seconds, arithmetic + program.times * count
        print(
            f"{program.name:20}{program.times:6}{seconds:10.3f}{count / 1e12:10.2f}{count / seconds / 1e12:10.1f}"
            f"{count / seconds / rate:12.0%}{compiled:15.1f}",
            flush=True,
        )
    share = arithmetic / total / rate
    print(f"iteration: {total:.3f} s, {arithmetic / 1e12:.4g} TFLOP, {share:.0%} of the rate of products")
    if statistics_ := jax.local_devices()[0].memory_stats():
        print(f"peak memory {statistics_['peak_bytes_in_use'] / 1e9:.2f} GB")
    profile(runner(work.programs[0]))


def materialize(tree):
    """Small random numbers, not negative (mean squares are not), in the shardings of these ShapeDtypeStructs."""

    def values(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.ones(leaf.shape, leaf.dtype)
        return 0.02 * jnp.abs(jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype))

    # One program for all: to compile one for each takes minutes.
    return jax.jit(lambda: jax.tree.map(values, tree), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, tree))()


def profile(call) -> None:
    """The ten operations that take longest."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event.get("name") == "process_name"}
    devices = {pid for pid, name in names.items() if "/device:" in name} or set(names)
    seconds = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and event["pid"] in devices and "hlo_op" in event.get("args", {}):
            seconds[event["name"]] += event["dur"] / 1e6
    print("longest operations of the first program:")
    for name, value in seconds.most_common(10):
        print(f"{value:10.4f} s {value / seconds.total():6.1%}  {name}")


if __name__ == "__main__":
    run(main)
