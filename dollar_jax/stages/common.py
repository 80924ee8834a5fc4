"""What several stages need: the encoded data, and pictures of a model in training."""

from collections.abc import Callable
from pathlib import Path

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from dollar_jax.checkpoint import Card
from dollar_jax.data.dataset import Dataset, open_dataset
from dollar_jax.data.pipeline import batches
from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.importing import UserError
from dollar_jax.models.network import Network
from dollar_jax.pipeline import Pipeline, draw_noise, load

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


def host_batches(source, batch_size: int, seed: int) -> grain.DatasetIterator:
    """Endless batches of this process's share of `batch_size`."""
    count = jax.process_count()
    return iter(batches(source, batch_size // count, seed, jax.process_index(), count))


def sampler_view(folder: Path, card: Card, network: Network, config: ConfigDict) -> tuple[Callable, np.ndarray]:
    """(show, null_text): show(state) samples its moving average for `config.show_captions`, always from the same noise.

    The card may describe a model whose parameters are still being trained.
    """
    parts = load(folder, parts=("vae", "text_encoder"))
    view = Pipeline(card, parts.networks | {"transformer": (network, None)}, parts.tokenizer)
    captions = list(config.show_captions)
    text, _ = view.encode_text(captions)
    null_text, _ = view.encode_text([""])
    noise, keys = draw_noise(card, config.seed, len(captions), 1)

    def show(state):
        latents = view.sampler(state.ema, noise, text, null_text, keys, view.times(None), card["guidance"])
        return view.decode(np.asarray(latents)), captions

    return show, null_text
