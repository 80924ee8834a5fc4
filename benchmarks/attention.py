"""Attention's kernels on this machine, beside the matrix multiplication that they are made of.

    python -m benchmarks.attention         the paper's sizes, about a minute; small ones on a CPU

The gradient counts as 2.5 times the forward pass: five products of queries by keys instead of two. The forward-mode
derivative, which continuous-time consistency takes, has five too, with the forward pass. What a kernel computes again,
and padding, is time but not work. MB are temporary memory, without arguments and results.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dollar_jax.models.attention import FORWARD_MODE, attention

RUNS = 9
HEADS, WIDTH = 30, 64
KERNELS = {"cpu": ("xla",), "gpu": ("xla", "cudnn"), "tpu": ("xla", "splash")}
# 226 of text and 40 x 12 x 20 or 13 x 30 x 45 of video.
TOKENS = {"cpu": (482, 1186), "gpu": (9826, 17776), "tpu": (9826, 17776)}
SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


def main() -> None:
    platform = jax.default_backend()
    side = SIDE[platform]
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    print(f"{jax.devices()[0].device_kind}, bfloat16, {HEADS} heads of {WIDTH}, medians of {RUNS} runs")
    report(f"product of {side} x {side}", timed(jax.jit(jnp.matmul), a, a), 2 * side**3)
    for n in TOKENS[platform]:
        work = 4 * n * n * HEADS * WIDTH
        x = [
            jax.random.normal(key, (1, n, HEADS, WIDTH), jnp.bfloat16) for key in jax.random.split(jax.random.key(n), 6)
        ]
        for kernel in KERNELS[platform]:
            measure(f"{kernel}, {n} tokens, forward", forward(kernel), x[:3], work)
            measure(f"{kernel}, {n} tokens, and gradient", gradient(kernel), x[:4], 3.5 * work)
        measure(f"{FORWARD_MODE}, {n} tokens, and forward-mode", forward_mode, x, 2.5 * work)


def forward(kernel: str) -> Callable:
    return lambda q, k, v: attention(q, k, v, kernel=kernel)


def gradient(kernel: str) -> Callable:
    return lambda q, k, v, cotangent: jax.vjp(forward(kernel), q, k, v)[1](cotangent)


def forward_mode(q, k, v, *tangents: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(forward(FORWARD_MODE), (q, k, v), tangents)


def measure(name: str, function: Callable, x: list[jax.Array], work: float) -> None:
    compiled = jax.jit(function).lower(*x).compile()
    report(name, timed(compiled, *x), work, compiled.memory_analysis().temp_size_in_bytes)


def timed(run: Callable, *args: jax.Array) -> float:
    """Median seconds, compilation apart."""
    jax.block_until_ready(run(*args))
    return statistics.median(_seconds(run, *args) for _ in range(RUNS))


def _seconds(run: Callable, *args: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*args))
    return time.perf_counter() - start


def report(name: str, seconds: float, operations: float, temporary: float = 0) -> None:
    rate = f"{operations / seconds / 1e12:8.2f} TFLOP/s"
    print(f"{name:34} {1e3 * seconds:9.2f} ms   {rate}   {temporary / 1e6:8.1f} MB", flush=True)


if __name__ == "__main__":
    main()
