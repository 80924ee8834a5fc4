"""Memory and time of converting a public model, there and back: a folder of its exact shapes with random weights.

python -m benchmarks.convert wan2.2-5b FOLDER [float32]

The weights are bfloat16, or float32. FOLDER, which is left empty, needs disk for the model twice.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import ml_dtypes
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import stock
import stock_wan

from dollar_jax.card import COMPONENTS
from dollar_jax.convert import families
from dollar_jax.convert.architectures import describe
from dollar_jax.convert.families.family import Architecture

SCHEDULERS = {
    "CogVideoXPipeline": diffusers.CogVideoXDDIMScheduler(**stock.SCHEDULER),
    "WanPipeline": diffusers.UniPCMultistepScheduler(**stock_wan.SCHEDULER),
}
# Of all random bits, the numbers between 0.5 and 1 and their negatives keep some.
BITS = {"bfloat16": (np.uint16, 0x80FF, 0x3F00), "float32": (np.uint32, 0x80FFFFFF, 0x3F000000)}
SHARD_BYTES = 2 * 10**9


def main(name: str, folder: Path, dtype: str = "bfloat16") -> None:
    source = folder / name
    write_source(name, source, dtype)
    stored = sum(path.stat().st_size for path in source.rglob("*.safetensors"))
    print(f"{source}: {stored / 1e9:.1f} GB", flush=True)
    measure("from_torch", source, folder / "ours")
    for path in source.rglob("*.safetensors"):
        path.unlink()
    measure("to_torch", folder / "ours", folder / "back")
    for path in (source, folder / "ours", folder / "back"):
        shutil.rmtree(path)


def measure(direction: str, source: Path, target: Path) -> None:
    start = time.perf_counter()
    command = [sys.executable, "-m", "dollar_jax.convert", direction, str(source), str(target)]
    done = subprocess.run(["time", "-f", "%M", *command], stderr=subprocess.PIPE, text=True, check=True)
    seconds, peak = time.perf_counter() - start, int(done.stderr.split()[-1]) * 1024
    print(f"{direction}: {seconds:.0f} s, at most {peak / 1e9:.1f} GB of memory", flush=True)


def write_source(name: str, folder: Path, dtype: str) -> None:
    """Everything random but the shapes; a shard in memory at a time."""
    card = families.public_models()[name]
    family = families.by_transformer(card["transformer"]["architecture"])
    stock.write_tokenizer(folder / "tokenizer")
    SCHEDULERS[family.pipeline].save_pretrained(folder / "scheduler")
    index = {"_class_name": family.pipeline, **family.index(card)}
    for part in COMPONENTS:
        architecture = family.component(part)
        config = describe(architecture, card[part])
        shapes = tensor_shapes(architecture, config)
        for place in family.folders if part == "transformer" else (part,):
            index[place] = [architecture.library, architecture.class_name]
            (folder / place).mkdir()
            (folder / place / "config.json").write_text(json.dumps(config))
            write_shards(folder / place, shapes, dtype)
    (folder / "model_index.json").write_text(json.dumps(index))


def tensor_shapes(architecture: Architecture, config: dict) -> dict[str, tuple[int, ...]]:
    """The shapes of the library's own module; tied weights come once."""
    with torch.device("meta"):
        if architecture.library == "diffusers":
            model = getattr(diffusers, architecture.class_name).from_config(config)
        else:
            kind = getattr(transformers, architecture.class_name)
            model = kind(kind.config_class(**config))
    shapes = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        shapes.setdefault(id(tensor), (key, tuple(tensor.shape)))
    return dict(shapes.values())


def write_shards(folder: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """Random tensors between 0.5 and 1 or their negatives, in shards with an index."""
    rng = np.random.default_rng(0)
    kind, kept, fixed = BITS[dtype]
    shards, size = [[]], 0
    for key, shape in shapes.items():
        if size > SHARD_BYTES:
            shards, size = [*shards, []], 0
        shards[-1].append(key)
        size += np.dtype(kind).itemsize * int(np.prod(shape))
    places = {}
    for number, keys in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for key in keys:
            bits = np.frombuffer(rng.bytes(np.dtype(kind).itemsize * int(np.prod(shapes[key]))), kind) & kind(kept)
            bits |= kind(fixed)
            tensors[key] = bits.view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32).reshape(shapes[key])
        save_file(tensors, folder / name)
        places |= dict.fromkeys(keys, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
