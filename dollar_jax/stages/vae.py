"""Trains the VAE on videos, into `workdir/vae`."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax.checkpoint import NUMBERED, read_card, save_params, write_card
from dollar_jax.models import build
from dollar_jax.pipeline import Latents, at_size, load, to_uint8
from dollar_jax.sharding import compile_step
from dollar_jax.stages.common import host_batches, in_blocks, video_source
from dollar_jax.steps.common import init_state
from dollar_jax.steps.vae import make_step
from dollar_jax.train import initialize, train

MEASURED_CLIPS = 256  # enough for the standard deviation of latents to 1 %


def vae(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    """Trains on reconstruction with a weak KL divergence.

    At the end the average becomes the VAE of the folder, and the card gets the factors that normalise latents to unit
    variance.
    """
    folder, stage = workdir / "vae", config.vae
    if (folder / "config.json").exists() and read_card(folder)["vae"]["scaling_factor"]:
        return
    card = {
        "role": "vae",
        "vae": {
            "architecture": stage.architecture,
            "config": stage.network.to_dict(),
            "scaling_factor": None,  # this and the shift are measured after training
            "shift_factor": 0.0,
            "path": NUMBERED,
            "item": "ema",
        },
    }
    card = at_size(card, config.video.to_dict())
    source = video_source(config)
    write_card(folder, card)
    network = build(stage.architecture, stage.network.to_dict(), dtype=config.dtype)
    key = jax.random.key(config.seed)
    state = initialize(partial(init_state, network, stage), mesh, jax.random.fold_in(key, 3), offload=config.offload)
    step = compile_step(make_step(network, stage), state, mesh)
    shown = [source[i] for i in range(len(config.show_captions))]
    frames = np.stack([clip["video"] for clip in shown])

    @jax.jit
    def reconstruct(params, video):
        mean, _ = network.apply(params, video, method="encode")
        return network.apply(params, mean, method="decode")

    def show(state):
        video = np.asarray(reconstruct(state.ema, frames / np.float32(127.5) - 1))
        return np.asarray(to_uint8((video + 1) / 2)), [clip["caption"] for clip in shown]

    def update(state, batch, captions, number):
        del captions, number
        return step(state, {}, batch, jax.random.fold_in(key, 4))

    train(folder, state, update, host_batches(source, stage, config.seed, mesh), stage, mesh, show)

    trained = load(folder, parts=("vae",))
    clips = [source[i]["video"] for i in range(min(MEASURED_CLIPS, len(source)))]
    latents = in_blocks(lambda rows: trained.encode_mean(np.stack(rows)), 32, clips)
    save_params(folder / "vae", trained.networks["vae"][1])
    factors = factors_of(latents, stage.per_channel)
    write_card(folder, card | {"vae": card["vae"] | factors | {"path": "vae", "item": ""}})


def factors_of(latents: Latents, per_channel: bool) -> dict[str, float | list[float]]:
    """Factors that normalise latents to unit variance: one scale, or shift and scale for each channel."""
    if not per_channel:
        return {"scaling_factor": float(1 / latents.std())}
    axes = tuple(range(latents.ndim - 1))
    return {"shift_factor": latents.mean(axes).tolist(), "scaling_factor": (1 / latents.std(axes)).tolist()}
