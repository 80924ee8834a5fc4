"""Memory and time of converting a folder of CogVideoX-5B's exact shapes, with random bfloat16 weights, there and back.

python -m benchmarks.convert_5b FOLDER        needs 60 GB of disk in FOLDER, which it leaves empty
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from safetensors.numpy import save_file
from transformers import T5Config, T5EncoderModel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import stock

TRANSFORMER = {
    "num_attention_heads": 48,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
}
T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
SHARD_BYTES = 5 * 10**9


def main(folder: Path) -> None:
    source = folder / "CogVideoX-5b"
    write_source(source)
    stored = sum(path.stat().st_size for path in source.rglob("*.safetensors"))
    print(f"{source}: {stored / 1e9:.1f} GB")
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


def write_source(folder: Path) -> None:
    """Everything random but the shapes; a shard in memory at a time."""
    stock.make_pipeline(folder)
    with torch.device("meta"):
        models = {
            "transformer": CogVideoXTransformer3DModel(**TRANSFORMER),
            "vae": AutoencoderKLCogVideoX(),
            "text_encoder": T5EncoderModel(T5Config(**T5_XXL, feed_forward_proj="gated-gelu")),
        }
    for name, model in models.items():
        for old in (folder / name).glob("*.safetensors"):
            old.unlink()
        save_config = model.config.save_pretrained if name == "text_encoder" else model.save_config
        save_config(folder / name)
        write_shards(folder / name, {key: tuple(parameter.shape) for key, parameter in model.named_parameters()})
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    config["architectures"] = ["T5EncoderModel"]
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))


def write_shards(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random bfloat16 tensors between 0.5 and 1 or their negatives, in shards with an index."""
    rng = np.random.default_rng(0)
    shards, size = [[]], 0
    for key, shape in shapes.items():
        if size > SHARD_BYTES:
            shards, size = [*shards, []], 0
        shards[-1].append(key)
        size += 2 * int(np.prod(shape))
    places = {}
    for number, keys in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for key in keys:
            bits = np.frombuffer(rng.bytes(2 * int(np.prod(shapes[key]))), np.uint16)
            tensors[key] = ((bits & 0x80FF) | 0x3F00).view(ml_dtypes.bfloat16).reshape(shapes[key])
        save_file(tensors, folder / name)
        places |= dict.fromkeys(keys, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
