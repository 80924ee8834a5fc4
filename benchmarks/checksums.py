"""What checksums cost: the transformer of CogVideoX-2B, random numbers in bfloat16, written and loaded.

    python -m benchmarks.checksums [FOLDER]     3.4 GB on the disk of FOLDER, by default the temporary one

Files come from the memory of the operating system where it has kept them: reading from a slower disk makes the share
smaller.
"""

import sys
import tempfile
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from dollar_jax import checkpoint, checksums
from dollar_jax.models import build

REPEATS = 3


def main(folder: str | None = None) -> None:
    shapes = jax.eval_shape(build("cogvideox_dit", {}).init, jax.random.key(0))
    random = np.random.default_rng(0)

    def numbers(shape):
        # Of any exponent, so that they cannot be compressed.
        return random.integers(0, 2**15, shape.shape, np.uint16).view(ml_dtypes.bfloat16)

    params = jax.tree.map(numbers, shapes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e9
    part = {"architecture": "cogvideox_dit", "config": {}, "path": "transformer", "item": ""}
    with tempfile.TemporaryDirectory(dir=folder) as model:
        target = Path(model) / "transformer"
        print(f"{size:.2f} GB")
        save = _timed("save, checksums included", lambda: checkpoint.save_params(target, params), size)
        written = _timed("checksums alone", lambda: checksums.write(target), size)
        load = _timed("load, verified", lambda: checkpoint.load_component(model, part), size)
        verify = _timed("verification alone", lambda: checksums.fault(target), size)
        print(f"share of saving {written / save:.0%}, of loading {verify / load:.0%}")


def _timed(name: str, function, size: float) -> float:
    """The least of several runs, in seconds."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    print(f"{name:26} {min(seconds):6.2f} s, {size / min(seconds):5.2f} GB/s", flush=True)
    return min(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
