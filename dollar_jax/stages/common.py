"""What several stages need: the encoded data, and pictures of a model in training."""

from collections.abc import Callable
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax.checkpoint import Card
from dollar_jax.data.dataset import Dataset, open_dataset
from dollar_jax.data.pipeline import batches
from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.importing import UserError
from dollar_jax.models.network import Network
from dollar_jax.pipeline import Pipeline, draw_noise, load
from dollar_jax.sharding import check_batch, data_share, shard

HELD_OUT = 2**31 - 1  # a seed that no run takes


def video_source(config: ConfigDict):
    """Random access to {'video', 'caption'}: the dataset at `config.data.path`, or clips of the shapes world.

    Raises:
      UserError: no dataset there, or videos of another size than the config's.
    """
    if config.data.path:
        dataset = open_dataset(config.data.path)
        for name in ("frames", "height", "width"):
            if dataset.info[name] != config.video[name]:
                raise UserError(
                    f"{config.data.path} has {name} {dataset.info[name]:g}, config.video.{name} is {config.video[name]}"
                )
        return dataset
    return ShapesWorld(config.data.clips, config.seed, config.video.frames, config.video.height)


def held_out_source(config: ConfigDict):
    """Videos that nothing was trained on. A user's dataset has none set apart: there they are those of training."""
    if config.data.path:
        return video_source(config)
    return ShapesWorld(2 * config.report.reference_clips, HELD_OUT, config.video.frames, config.video.height)


def encoded_source(config: ConfigDict, workdir: Path) -> Dataset:
    """Random access to {'latents', 'text', 'text_mask', 'caption'}: what this run encoded, or `config.data.path` where
    `python -m dollar_jax.data --encode` wrote it.
    """
    encoded = workdir / "encoded" / "data"
    return open_dataset(encoded if encoded.exists() or not config.data.path else config.data.path)


def network_options(config: ConfigDict) -> dict:
    """How the large networks compute, for `build` and `load_component`."""
    return {"dtype": config.dtype, "remat": config.remat, "attention": config.attention or None}


def host_batches(source, config: ConfigDict, seed: int, mesh: Mesh) -> grain.DatasetIterator:
    """Endless batches of `config.batch_size`: the rows for the devices of this process.

    Raises:
      UserError: the devices cannot share such a batch equally.
    """
    check_batch(config.batch_size, mesh, config.accumulate)
    return iter(batches(source, config.batch_size, seed, *data_share(mesh)))


def sampler_view(
    folder: Path, card: Card, network: Network, config: ConfigDict, mesh: Mesh
) -> tuple[Pipeline, Callable, np.ndarray]:
    """(view, show, null_text): show(state) samples its moving average for `config.show_captions`, always from the same
    noise; `view` decodes.

    The card may describe a model whose parameters are still being trained.
    """
    encoder = load(folder, parts=("text_encoder",))
    captions = list(config.show_captions)
    text, _ = encoder.encode_text(captions)
    null_text, _ = encoder.encode_text([""])
    del encoder  # the largest network of all: it shall not stay in memory
    vae = load(folder, parts=("vae",)).networks["vae"]
    view = Pipeline(card, {"vae": vae, "transformer": (network, None)}, None)
    noise, keys = draw_noise(card, config.seed, len(captions), 1)

    def show(state):
        params = jax.device_put(state.ema, shard(state.ema, mesh))  # it may wait in the host's memory
        latents = view.sampler(params, noise, text, null_text, keys, view.times(None), card["guidance"])
        return view.decode(latents), captions

    return view, show, null_text
