"""Pretrains a teacher from scratch on encoded videos, into `workdir/teacher`."""

from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax import diffusion
from dollar_jax.checkpoint import NUMBERED, bring, read_card, write_card
from dollar_jax.models import build
from dollar_jax.sharding import compile_step
from dollar_jax.stages.common import encoded_source, host_batches, network_options, open_view
from dollar_jax.steps.common import init_state
from dollar_jax.steps.teacher import make_step
from dollar_jax.train import finished, initialize, train


def teacher(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    """Trains on Eq. 4 with caption dropout; the card has the settings for sampling, the VAE and the text encoder."""
    folder, stage = workdir / "teacher", config.teacher
    if finished(folder, stage):
        return
    schedule = diffusion.make_schedule(**stage.schedule)
    diffusion.check_prediction_type(stage.prediction_type, schedule)
    encoded = read_card(workdir / "encoded")
    card = bring(encoded, workdir / "encoded", folder) | {
        "role": "teacher",
        "video": encoded["video"],
        "latent_shape": encoded["latent_shape"],
        "transformer": {
            "architecture": stage.architecture,
            "config": stage.network.to_dict(),
            "path": NUMBERED,
            "item": "ema",
        },
        "prediction_type": stage.prediction_type,
        "schedule": stage.schedule.to_dict(),
        "times": schedule.spaced(stage.steps),
        "sampler": stage.sampler,
        "guidance": stage.guidance,
        "negative_prompt": stage.negative_prompt,
    }
    write_card(folder, card)

    network = build(stage.architecture, stage.network.to_dict(), **network_options(config))
    key = jax.random.key(config.seed)
    view = open_view(folder, card, network, config, mesh)  # first: its text encoder is freed by then
    state = initialize(partial(init_state, network, stage), mesh, jax.random.fold_in(key, 0), offload=config.offload)
    step = compile_step(make_step(network, stage.prediction_type, schedule, stage), state, mesh)

    def update(state, batch, captions, number):
        del captions, number  # the batch has the condition of the captions
        return step(state, {"empty": view.empty}, batch, jax.random.fold_in(key, 1))

    batches = host_batches(encoded_source(config, workdir), stage, config.seed, mesh)
    train(folder, state, update, batches, stage, mesh, view.show)
