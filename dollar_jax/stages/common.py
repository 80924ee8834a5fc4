"""Data and sampling shared by several stages: sources of videos, encoded data, views of a model in training."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax.checkpoint import Card
from dollar_jax.data import pairs, shapes
from dollar_jax.data.dataset import Dataset, joined, open_dataset
from dollar_jax.data.held_out import split
from dollar_jax.data.pipeline import batches
from dollar_jax.data.prompts import stream_prompts
from dollar_jax.errors import UserError
from dollar_jax.evaluate.measure import Metrics
from dollar_jax.models import roles
from dollar_jax.models.flow_map import is_flow_map
from dollar_jax.models.network import Network
from dollar_jax.pipeline import Pipeline, draw_noise, load
from dollar_jax.reading import read_json
from dollar_jax.sharding import check_batch, data_share, even_batch, shard
from dollar_jax.types import Condition

HELD_OUT = 2**31 - 1  # a seed that no run has
FITTED, MEASURED = slice(0, None, 2), slice(1, None, 2)
PROMPTS, DONE = "encoded_prompts", "done.json"  # folder of encoded prompts; its file once all are encoded


def video_source(config: ConfigDict):
    """Random access to {'video', 'caption'} of training: of the dataset at `config.data.path`, whose videos may be
    encoded, without those that are held out; or of clips of `config.data.world`.

    Raises:
      UserError: there is no dataset, its videos have another size than the config's, or they cannot be split.
    """
    if config.data.path:
        return _split_dataset(config)[0]
    return _rendered(config, config.data.clips, config.seed, config.data.long_captions, pairs.CAPTIONS)


def held_out_source(config: ConfigDict):
    """Like `video_source`, but the held-out videos; all videos of a dataset of which none are held out.

    Of a rendered world these are other clips, in that of pairs with the captions of `prompts`.
    """
    if config.data.path:
        return _split_dataset(config)[1]
    return _rendered(config, 2 * config.report.reference_clips, HELD_OUT, config.report.long_prompts, prompts(config))


def holds_out(config: ConfigDict) -> bool:
    """Whether videos of a dataset are held out."""
    return bool(config.data.get("held_out") or config.data.get("held_out_files"))


def _split_dataset(config: ConfigDict) -> tuple[Dataset, Dataset]:
    """The dataset at `config.data.path` to train on, and its held-out part."""
    path = config.data.path
    dataset = open_dataset(path)
    if not {"video", "latents"} & dataset[0].keys():
        raise UserError(f"{path} has prompts without videos")
    for name in ("frames", "height", "width"):
        there, here = dataset.info.get(name), config.video[name]
        if there != here:
            raise UserError(f"{path} has videos with {name} = {there}, but config.video.{name} is {here}")
    if not holds_out(config):
        return dataset, dataset
    return split(dataset, config.data.get("held_out", 0.0), config.data.get("held_out_files", ()), path)


def _rendered(config: ConfigDict, clips: int, seed: int, long_captions: bool, of_pairs: Sequence[str]) -> shapes.World:
    """Clips of `config.data.world`; `of_pairs` are the captions to draw in the world of pairs."""
    size = clips, seed, config.video.frames, config.video.height
    if config.data.world == "pairs":
        return pairs.PairsWorld(*size, of_pairs)
    return shapes.ShapesWorld(*size, long_captions=long_captions)


def prompts_alone(config: ConfigDict) -> str:
    """The file of prompts that a run learns from in place of videos, '' for a run with videos."""
    return config.data.get("prompts", "")


def has_clips(config: ConfigDict) -> bool:
    """Whether there are real clips to compare with: there are none beside prompts, except in a rendered world."""
    return not prompts_alone(config) or "clips" in config.data


def report_metrics(config: ConfigDict) -> Metrics:
    """The metrics of `config.report.metrics`; without real clips those that need none."""
    named = config.report.metrics.to_dict()
    if has_clips(config):
        return Metrics(named)
    least = Metrics(named).least_clips
    return Metrics({name: options for name, options in named.items() if not least[name]})


def real_clips(config: ConfigDict, part: slice = slice(None)) -> list[dict]:
    """Reference clips of one size from `held_out_source`, at most twice `config.report.reference_clips`.

    Args:
      part: which of them; others are not read. Metrics are fitted to `FITTED`, and measured on the others, `MEASURED`.
    """
    source = held_out_source(config)
    clips = [source[i] for i in range(min(2 * config.report.reference_clips, len(source)))[part]]
    return [clip for clip in clips if _shape(clip) == _shape(clips[0])]  # a user's dataset may also hold images


def _shape(clip: dict) -> tuple[int, ...]:
    return clip["latents" if "latents" in clip else "video"].shape


def encode_clips(model: Pipeline, clips: Sequence[dict], size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Frames, latents and captions of real clips, `size` of them at a time in the VAE.

    Clips that are stored as latents are decoded to frames.
    """
    given, convert = ("latents", model.decode) if "latents" in clips[0] else ("video", model.encode_video)
    values = np.stack([clip[given] for clip in clips])
    made = in_blocks(convert, even_batch(size), values)
    frames, latents = (made, values) if given == "latents" else (values, made)
    return frames, latents, [clip["caption"] for clip in clips]


def in_blocks(function: Callable, size: int, *rows: np.ndarray | Sequence) -> np.ndarray:
    """function(*rows), with `size` rows of each in a call: memory grows with the number of videos."""
    starts = range(0, len(rows[0]), size)
    return np.concatenate([function(*(values[i : i + size] for values in rows)) for i in starts])


def prompts(config: ConfigDict) -> list[str]:
    """Prompts of the rendered world, or the first `config.report.captions` different captions of the user's data, of
    its held-out part if there is one.
    """
    if file := prompts_alone(config):
        return _different(stream_prompts(file), config.report.captions)
    if not config.data.path:
        if config.data.world == "pairs":
            return list(pairs.some_captions(config.report.captions))
        return list(shapes.LONG_CAPTIONS if config.report.long_prompts else shapes.CAPTIONS)
    source = held_out_source(config)
    return _different((source[i]["caption"] for i in range(len(source))), config.report.captions)


def _different(captions: Iterable[str], count: int) -> list[str]:
    """The first `count` different captions; no more are read."""
    found = {}
    for caption in captions:
        found[caption] = None
        if len(found) == count:
            break
    return list(found)


def encoded_source(config: ConfigDict, workdir: Path) -> Dataset:
    """The encoded dataset: random access to {'latents', 'caption'} and the columns of a condition (`data.encoding`).

    It was encoded by this run, or by `python -m dollar_jax.data --encode` at `config.data.path`; held-out videos are
    not in it. Prompts alone have no latents.
    """
    if prompts_alone(config):
        folder = workdir / PROMPTS
        return joined([open_dataset(piece_of(folder, i)) for i in range(read_json(folder / DONE)["pieces"])])
    encoded = workdir / "encoded" / "data"
    return video_source(config) if config.data.path and not encoded.exists() else open_dataset(encoded)


def piece_of(folder: Path, number: int) -> Path:
    """The dataset with this piece of the encoded prompts."""
    return folder / f"{number:05d}"


def network_options(config: ConfigDict) -> dict:
    """Options of `build` and `load_component` for the large networks: dtype, rematerialisation, attention kernel."""
    return {"dtype": config.dtype, "remat": config.remat, "attention": config.attention or None}


def host_batches(source, config: ConfigDict, seed: int, mesh: Mesh, parts: int = 1) -> grain.DatasetIterator:
    """Endless batches of `parts` x `config.batch_size` examples; each process gets the rows for its devices.

    Raises:
      UserError: the batch size is not divisible by the number of devices that share a batch.
    """
    check_batch(config.batch_size, mesh, config.accumulate)
    return iter(batches(source, parts * config.batch_size, seed, *data_share(mesh)))


class View(NamedTuple):
    """Sampling from a model in training, see `open_view`.

    Attributes:
      pipeline: samples and decodes; its transformer has no parameters.
      show: (state) -> (frames, captions), samples from the moving average for the log.
      negative: condition (b = 1) of the card's negative prompt.
      empty: condition (b = 1) of the empty caption.
      condition: condition of the captions that `open_view` got.
    """

    pipeline: Pipeline
    show: Callable
    negative: Condition
    empty: Condition
    condition: Condition


def open_view(
    folder: Path, card: Card, network: Network, config: ConfigDict, mesh: Mesh, captions: Sequence[str] = ()
) -> View:
    """Opens the view of a model whose parameters need not exist yet.

    Args:
      folder: folder of the model; the VAE and the text encoder are read from it.
      card: card of the model.
      network: the transformer.
      captions: captions to encode for `View.condition`. (`show` uses `config.show_captions`, always with the same
        noise.)

    Raises:
      UserError: the transformer is from outside and breaks the contract of its role.
    """
    shown = list(config.show_captions)
    # The text encoder is the largest network: it is loaded, used once and freed.
    told = load(folder, parts=("text_encoder",)).encode_text([*shown, card["negative_prompt"], "", *captions])

    def rows(start: int, stop: int | None) -> Condition:
        return jax.tree.map(lambda x: x[start:stop], told)

    count = len(shown)
    negative, empty, rest = rows(count, count + 1), rows(count + 1, count + 2), rows(count + 2, None)
    part = card["transformer"]
    if ":" in (name := part["architecture"]):
        latents = jax.ShapeDtypeStruct((1, *card["latent_shape"]), jnp.float32)
        role = "flow_map" if is_flow_map(part["config"]) else "transformer"
        roles.require(role, network, name, latents, empty)
    vae = load(folder, parts=("vae",)).networks["vae"]
    pipeline = Pipeline(card, {"vae": vae, "transformer": (network, None)}, None)
    noise, keys = draw_noise(card, config.seed, count, 1)

    def show(state):
        params = jax.device_put(state.ema, shard(state.ema, mesh))  # `offload` keeps it in the host's memory
        made = pipeline.videos(rows(0, count), noise, keys, negative=negative, params=params, batch_size=count)
        return next(made)[1], shown

    return View(pipeline, show, negative, empty, rest)
