"""What several stages need: the encoded data, and pictures of a model in training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax.checkpoint import Card
from dollar_jax.data.dataset import Dataset, open_dataset
from dollar_jax.data.pipeline import batches
from dollar_jax.data.shapes import CAPTIONS, LONG_CAPTIONS, ShapesWorld
from dollar_jax.errors import UserError
from dollar_jax.models import roles
from dollar_jax.models.network import Network
from dollar_jax.pipeline import Pipeline, draw_noise, load
from dollar_jax.sharding import check_batch, data_share, shard
from dollar_jax.types import Condition

HELD_OUT = 2**31 - 1  # a seed that no run takes


def video_source(config: ConfigDict):
    """Random access to {'video', 'caption'}: the dataset at `config.data.path`, or clips of the shapes world.

    Raises:
      UserError: no dataset there, or videos of another size than the config's.
    """
    if config.data.path:
        dataset = open_dataset(config.data.path)
        for name in ("frames", "height", "width"):
            there, here = dataset.info.get(name), config.video[name]
            if there != here:
                raise UserError(f"{config.data.path} has {name} {there}, config.video.{name} is {here}")
        return dataset
    return _rendered(config, config.data.clips, config.seed, config.data.long_captions)


def held_out_source(config: ConfigDict):
    """Videos that nothing was trained on. A user's dataset has none set apart: there they are those of training."""
    if config.data.path:
        return video_source(config)
    return _rendered(config, 2 * config.report.reference_clips, HELD_OUT, config.report.long_prompts)


def _rendered(config: ConfigDict, clips: int, seed: int, long_captions: bool) -> ShapesWorld:
    return ShapesWorld(clips, seed, config.video.frames, config.video.height, long_captions=long_captions)


def real_clips(config: ConfigDict) -> list[dict]:
    """Held-out clips to measure against, twice `config.report.reference_clips` or all there are, of one size."""
    source = held_out_source(config)
    clips = [source[i] for i in range(min(2 * config.report.reference_clips, len(source)))]
    return [clip for clip in clips if _shape(clip) == _shape(clips[0])]  # a user's data may hold images too


def _shape(clip: dict) -> tuple[int, ...]:
    return clip["latents" if "latents" in clip else "video"].shape


def encode_clips(model: Pipeline, clips: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Frames, latents and captions of real clips; of those stored as latents the frames that these decode to."""
    given, convert = ("latents", model.decode) if "latents" in clips[0] else ("video", model.encode_video)
    values = np.stack([clip[given] for clip in clips])
    made = np.concatenate([convert(values[i : i + 32]) for i in range(0, len(values), 32)])
    frames, latents = (made, values) if given == "latents" else (values, made)
    return frames, latents, [clip["caption"] for clip in clips]


def prompts(config: ConfigDict) -> list[str]:
    """Those of the shapes world, or the first `config.report.captions` different ones of the user's data."""
    if not config.data.path:
        return list(LONG_CAPTIONS if config.report.long_prompts else CAPTIONS)
    source = held_out_source(config)
    return list(dict.fromkeys(source[i]["caption"] for i in range(len(source))))[: config.report.captions]


def encoded_source(config: ConfigDict, workdir: Path) -> Dataset:
    """Random access to {'latents', 'caption'} and the columns of a condition (`data.encoding`): the data that this run
    encoded, or `config.data.path` where `python -m dollar_jax.data --encode` wrote it.
    """
    encoded = workdir / "encoded" / "data"
    return open_dataset(encoded if encoded.exists() or not config.data.path else config.data.path)


def network_options(config: ConfigDict) -> dict:
    """How the large networks compute, for `build` and `load_component`."""
    return {"dtype": config.dtype, "remat": config.remat, "attention": config.attention or None}


def host_batches(source, config: ConfigDict, seed: int, mesh: Mesh, parts: int = 1) -> grain.DatasetIterator:
    """Endless batches of `parts` times `config.batch_size`: the rows for the devices of this process.

    Raises:
      UserError: the devices cannot share such a batch equally.
    """
    check_batch(config.batch_size, mesh, config.accumulate)
    return iter(batches(source, parts * config.batch_size, seed, *data_share(mesh)))


class View(NamedTuple):
    """How a model in training is looked at."""

    pipeline: Pipeline  # samples and decodes; its transformer has no parameters of its own
    show: Callable  # (state) -> (frames, captions): samples of its moving average for the log
    negative: Condition  # of the card's negative prompt, and
    empty: Condition  # of the empty caption, b = 1 each
    condition: Condition  # of the captions asked for


def open_view(
    folder: Path, card: Card, network: Network, config: ConfigDict, mesh: Mesh, captions: Sequence[str] = ()
) -> View:
    """The view of a model that the card describes, whose parameters may not exist yet. `show` always starts from the
    same noise; `captions` are encoded.

    Raises:
      UserError: the transformer is from outside and does not keep the contract of its role.
    """
    shown = list(config.show_captions)
    # Read once and dropped: the text encoder is the largest network of all.
    told = load(folder, parts=("text_encoder",)).encode_text([*shown, card["negative_prompt"], "", *captions])

    def rows(start: int, stop: int | None) -> Condition:
        return jax.tree.map(lambda x: x[start:stop], told)

    count = len(shown)
    negative, empty, rest = rows(count, count + 1), rows(count + 1, count + 2), rows(count + 2, None)
    if ":" in (name := card["transformer"]["architecture"]):
        latents = jax.ShapeDtypeStruct((1, *card["latent_shape"]), jnp.float32)
        roles.require("transformer", network, name, latents, empty)
    vae = load(folder, parts=("vae",)).networks["vae"]
    pipeline = Pipeline(card, {"vae": vae, "transformer": (network, None)}, None)
    noise, keys = draw_noise(card, config.seed, count, 1)

    def show(state):
        params = jax.device_put(state.ema, shard(state.ema, mesh))  # it may wait in the host's memory
        made = pipeline.videos(rows(0, count), noise, keys, negative=negative, params=params, batch_size=count)
        return next(made)[1], shown

    return View(pipeline, show, negative, empty, rest)
