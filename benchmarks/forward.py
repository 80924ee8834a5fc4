"""Forward time beside diffusers on a CPU: same weights, same threads, taking turns in one process.

    python -m benchmarks.forward           about ten minutes; prints a table

Medians of the ratio of neighbouring runs: a noisy machine slows both sides of a pair.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import stock
from torch_steps import FAMILIES

from dollar_jax.convert import cogvideox_vae
from dollar_jax.convert.tables import convert
from dollar_jax.models import build
from dollar_jax.types import Condition

PAIRS = 7
PAUSE = 0.5  # seconds: threads of the run before spin on for a while, and would slow down the other side
WAN = {"num_layers": 2, "num_attention_heads": 12, "ffn_dim": 8960}  # of 1.3B
# Widths of the public networks, fewer layers: name, family, config, latent frames x rows x columns, text tokens.
TRANSFORMERS = {
    "transformer, 514 tokens": ("cogvideox", {"num_layers": 2}, (3, 16, 24), 226),
    "transformer, 1186 tokens": ("cogvideox", {"num_layers": 2}, (5, 24, 32), 226),
    "transformer, a quarter": (
        "cogvideox",
        {"num_layers": 6, "num_attention_heads": 8, "time_embed_dim": 256, "max_text_seq_length": 64},
        (5, 24, 32),
        64,
    ),
    "Wan's, 288 + 512 tokens": ("wan", WAN, (3, 16, 24), 512),
    "Wan's, 960 + 512 tokens": ("wan", WAN, (5, 24, 32), 512),
}
DECODERS = {
    "VAE decode, public widths": ({}, (1, 12, 16)),
    "VAE decode, a quarter": ({"block_out_channels": (32, 64, 64, 128), "norm_num_groups": 16}, (3, 16, 24)),
}


def main() -> None:
    torch.manual_seed(0)
    print(f"{jax.devices()[0].device_kind}, {torch.get_num_threads()} threads of PyTorch, float32, {PAIRS} pairs")
    for name, case in TRANSFORMERS.items():
        compare(name, *transformer(*case))
    for name, case in DECODERS.items():
        compare(name, *decoder(*case))


def transformer(family: str, config: dict, sizes: tuple[int, ...], length: int) -> tuple[Callable, Callable]:
    """Theirs and ours on the same inputs, results in our layout."""
    family = FAMILIES[family]
    theirs = stock.randomize(family.network(**config), 0.02)
    x, text, times = torch.randn(1, *sizes, 16), torch.randn(1, length, 4096), torch.tensor([500])
    there, back = f"b f h w c -> {family.layout}", f"{family.layout} -> b f h w c"
    given = {"hidden_states": rearrange(x, there).contiguous(), "encoder_hidden_states": text, "timestep": times}
    network, params = ours(family.architecture, family.keys, theirs)
    apply = jax.jit(network.apply)
    told = Condition(jnp.asarray(text.numpy()), jnp.ones((1, length), bool))
    inputs = jnp.asarray(x.numpy()), jnp.asarray(times.numpy(), jnp.float32), told
    return (
        lambda: rearrange(theirs(**given, return_dict=False)[0], back).numpy(),
        lambda: apply(params, *inputs),
    )


def decoder(config: dict, sizes: tuple[int, ...]) -> tuple[Callable, Callable]:
    """Theirs and ours on the same latents, results in our layout."""
    theirs = stock.randomize(AutoencoderKLCogVideoX(**config, **levels()), 0.05)
    latents = torch.randn(1, 16, *sizes)
    network, params = ours("cogvideox_vae", cogvideox_vae, theirs)
    decode = jax.jit(lambda params, x: network.apply(params, x, method="decode"))
    x = jnp.asarray(latents.permute(0, 2, 3, 4, 1).numpy())
    return lambda: theirs.decode(latents).sample.permute(0, 2, 3, 4, 1).numpy(), lambda: decode(params, x)


def levels() -> dict:
    return {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}


def ours(architecture: str, keys, theirs: torch.nn.Module):
    """Our network with the same weights."""
    config = keys.config(dict(theirs.config))
    network = build(architecture, config)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    params = convert(keys.table(config), state, jax.eval_shape(network.init, jax.random.key(0)))
    return network, jax.device_put(params)


def compare(name: str, theirs: Callable, ours: Callable) -> None:
    with torch.inference_mode():
        wanted, got = theirs(), np.asarray(ours())
        error = np.abs(wanted - got).max() / np.abs(wanted).max()
        seconds = [(timed(theirs), timed(lambda: jax.block_until_ready(ours()))) for _ in range(PAIRS)]
    ratio = statistics.median(ours / theirs for theirs, ours in seconds)
    stock_time, our_time = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(
        f"{name:26} diffusers {stock_time:6.3f} s   here {our_time:6.3f} s   ratio {ratio:.2f}   error {error:.0e}",
        flush=True,
    )


def timed(run: Callable) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
