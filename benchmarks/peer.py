"""An update of the student and one of the fake score beside PyTorch with diffusers' networks on a CPU, taking turns.

    python -m benchmarks.peer --family=cogvideox
    python -m benchmarks.peer --family=wan

Both have the same weights, captions and random numbers, the same calls of the network, the same rule for what the
backward pass recomputes, and the same threads. First both updates are compared. PyTorch runs with and without
`torch.compile`, and its faster time counts. Ratios are medians over neighbouring runs: a noisy machine slows both sides
of a pair.
"""

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import torch
from absl import flags

from dollar_jax.cli import run
from dollar_jax.models.network import count_parameters
from dollar_jax.types import Condition

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from same_steps import Ours, differences, recipe
from torch_steps import FAMILIES, Peer, random_networks

PAIRS = 7
PAUSE = 0.5  # seconds: threads of the run before spin on for a while, and would slow down the other side
TOLERANCE = {"loss": 1e-4, "gradient": 1e-3, "update": 0.05, "average": 1e-5}
SHAPE, BATCH = (5, 16, 24, 16), 1
# 512 wide, 6 layers: the heads of the public networks, fewer of them. And the number of words.
SIZES = {
    "cogvideox": (
        {
            "num_layers": 6,
            "num_attention_heads": 8,
            "time_embed_dim": 256,
            "max_text_seq_length": 64,
            # The table of positions is made once for this size.
            "sample_frames": 17,
            "sample_height": SHAPE[1],
            "sample_width": SHAPE[2],
        },
        64,
    ),
    "wan": ({"num_layers": 6, "num_attention_heads": 4, "ffn_dim": 2048}, 512),
}
_FAMILY = flags.DEFINE_enum("family", "cogvideox", list(FAMILIES), "Whose transformer.")
_RECOMPUTE = flags.DEFINE_bool("recompute", True, "Whether the backward pass recomputes the blocks, in both.")


def main() -> None:
    family, (sizes, words) = FAMILIES[_FAMILY.value], SIZES[_FAMILY.value]
    config, networks = recipe(family), random_networks(family, sizes, 0.02)
    if _RECOMPUTE.value:
        for network in networks.values():
            network.enable_gradient_checkpointing()
    peers = {"eager": Peer(family, networks, config), "compiled": Peer(family, copy.deepcopy(networks), config)}
    for network in peers["compiled"].networks.values():
        for block in getattr(network, family.blocks):
            block.compile(dynamic=False)
    remat = "nothing_saveable" if _RECOMPUTE.value else "everything_saveable"
    ours = Ours(family, networks, config, SHAPE, remat=remat)
    text = torch.randn(BATCH, words, 4096)
    told, key = Condition(jnp.array(text.numpy()), jnp.ones((BATCH, words), bool)), jax.random.key(1)
    print(
        f"{jax.devices()[0].device_kind}, {torch.get_num_threads()} threads of PyTorch, float32, {PAIRS} pairs;"
        f" {count_parameters(ours.teacher) / 1e6:.1f} M parameters, {math.prod(SHAPE[:3]) // 4} tokens of video,"
        f" {words} of text, blocks {'recomputed' if _RECOMPUTE.value else 'kept'}",
        flush=True,
    )
    for part in ("fake_score", "generator"):
        found = differences(part, ours, peers["eager"], told, text, key)
        print(f"{part}: differences of", ", ".join(f"{name} {value:.0e}" for name, value in found.items()), flush=True)
        if wrong := [name for name, value in found.items() if value > TOLERANCE[name]]:
            raise SystemExit(f"{part}: {', '.join(wrong)} of both differ: their times say nothing")
    for part in ("generator", "fake_score"):
        draws = ours.draws(part, key, BATCH)
        compare(
            part,
            {name: partial(getattr(peer, part), text, draws) for name, peer in peers.items()},
            partial(ours.update, part, told, key),
        )


def compare(part: str, theirs: dict[str, Callable], ours: Callable) -> None:
    """Prints times of repeated rounds, in which each side runs once."""
    sides = {**theirs, "here": ours}
    for call in sides.values():
        call()  # compiles
    rounds = [{name: timed(call) for name, call in sides.items()} for _ in range(PAIRS)]
    median = {name: statistics.median(seconds[name] for seconds in rounds) for name in sides}
    best = min(theirs, key=median.get)
    ratio = statistics.median(seconds["here"] / seconds[best] for seconds in rounds)
    times = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in median.items())
    print(f"{part:12} {times}   ratio to {best} {ratio:.2f}", flush=True)


def timed(call: Callable) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


if __name__ == "__main__":
    run(main)
