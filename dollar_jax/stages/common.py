"""What several stages need: the encoded data, and pictures of a model in training."""

from collections.abc import Callable
from pathlib import Path

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from dollar_jax.checkpoint import Card
from dollar_jax.data.dataset import open_dataset
from dollar_jax.data.pipeline import batches
from dollar_jax.models.network import Network
from dollar_jax.pipeline import Pipeline, draw_noise, load


def encoded_batches(config: ConfigDict, workdir: Path, batch_size: int) -> grain.DatasetIterator:
    """Endless batches {'latents', 'text', 'text_mask', 'caption'} of this process's share."""
    source = open_dataset(workdir / "encoded" / "data")
    return iter(
        batches(source, batch_size // jax.process_count(), config.seed, jax.process_index(), jax.process_count())
    )


def sampler_view(
    folder: Path, card: Card, network: Network, config: ConfigDict
) -> tuple[Callable, np.ndarray]:
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
