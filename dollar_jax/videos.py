"""Samples numbered videos of a model in batches; the numbers of prompt and video determine the noise."""

import json
import os
import reprlib
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from dollar_jax.card import COMPONENTS, SAMPLED, Card
from dollar_jax.checkpoint import digest
from dollar_jax.errors import UserError
from dollar_jax.files import write_atomically
from dollar_jax.pipeline import Latents, Pipeline, noise_at
from dollar_jax.reading import read_json, require_schema
from dollar_jax.sharding import even_batch

STAMP = "sample.json"  # in a folder of videos: what they are made of
Made = tuple["Sample", Float[np.ndarray, "f h w c"], UInt8[np.ndarray, "F H W 3"]]


class Sample(NamedTuple):
    """A video to sample.

    Attributes:
      name: file name without the suffix.
      caption: the model's input.
      prompt, video: number of the prompt, and of the video among the prompt's videos; with the seed they determine the
        noise.
    """

    name: str
    caption: str
    prompt: int
    video: int


def draw(
    model: Pipeline,
    samples: Sequence[Sample],
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 8,
    noise: Latents | None = None,
    negative_prompt: str | None = None,
    only: Container[str] | None = None,
) -> Iterator[Made]:
    """Yields each sample in order with its latents and its frames. Only one batch is in memory.

    Args:
      steps, guidance: see `Pipeline.videos`.
      batch_size: largest number of videos in a batch, see `Pipeline.videos`.
      noise: initial noise of each sample; None: drawn from the seed.
      negative_prompt: the prompt that guidance moves away from; None: the card's.
      only: names of the samples to yield; None: all. Each is made in the batch that it has among all, which decides how
        its numbers are rounded; batches without any are left out.
    """
    batch_size = even_batch(batch_size)
    size = min(batch_size, len(samples))
    negative = None if negative_prompt is None else model.encode_text([negative_prompt])
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + size]
        if only is not None and not any(sample.name in only for sample in batch):
            continue
        # The last batch is padded, so that only one shape is compiled.
        index = np.minimum(np.arange(start, start + size), len(samples) - 1)
        rows = [samples[i] for i in index]
        condition = model.encode_text([row.caption for row in rows])
        begin, keys = noise_of(model.card, seed, rows)
        begin = begin if noise is None else noise[index]
        made = model.videos(condition, begin, keys, steps=steps, guidance=guidance, negative=negative, batch_size=size)
        latents, frames = next(made)
        for sample, *rows in zip(batch, latents, frames, strict=False):
            if only is None or sample.name in only:
                yield sample, *rows


def settings(
    folder: str | os.PathLike,
    model: Pipeline,
    dtype: str,
    seed: int,
    steps: int | None,
    guidance: float | None,
    negative_prompt: str | None = None,
) -> dict[str, Any]:
    """What decides the videos of numbered prompts, but for rounding; arguments as of `draw`.

    Args:
      folder, dtype: where and with which dtype the model was loaded.
    """
    card = model.card
    return {
        **{part: digest(folder, card[part]) for part in COMPONENTS},
        **{name: card[name] for name in SAMPLED if name not in COMPONENTS},
        "times": model.times(steps),
        "guidance": model.guidance if guidance is None else guidance,
        "negative_prompt": card["negative_prompt"] if negative_prompt is None else negative_prompt,
        "tiled": model.tiled,
        "dtype": dtype,
        "seed": seed,
    }


def claim(out: Path, made_of: Mapping[str, Any]) -> None:
    """Notes in a folder what its videos are made of; a folder that has videos must have the same note.

    Raises:
      UserError: the folder has videos of another command, or without a note.
    """
    path = out / STAMP
    if any(out.glob("*.mp4")):
        if not path.exists():
            raise UserError(f"{out} holds videos, and no {STAMP} says what they are made of: take another --out")
        require_schema(noted := read_json(path), {"type": "object"}, path, "take another --out")
        require_same(out, noted, made_of)
    write_atomically(path, json.dumps(made_of, indent=1) + "\n")


def require_same(out: Path, noted: Mapping[str, Any], made_of: Mapping[str, Any]) -> None:
    """Raises UserError if a folder's note, which was read from JSON, has another value of `made_of`, or lacks it."""
    made_of = json.loads(json.dumps(made_of))
    if changed := [name for name in made_of if noted.get(name) != made_of[name]]:
        there, here = (reprlib.repr(one.get(changed[0])) for one in (noted, made_of))
        raise UserError(
            f"{out} holds videos of another command: {changed[0]} is {there} there, {here} here; take another --out"
        )


def noise_of(card: Card, seed: int, samples: Sequence[Sample]) -> tuple[Latents, jax.Array]:
    """Noise [n f h w c] and keys [n] of these samples: their rows in the result of `pipeline.draw_noise`."""
    return noise_at(card, seed, *jnp.array([(sample.prompt, sample.video) for sample in samples]).T)


def read_noise(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Reads the noise in a .npy file.

    Raises:
      UserError: the file is no .npy file with one float32 array of `shape`.
    """
    try:
        noise = np.load(path, allow_pickle=False, mmap_mode="r")  # a header may promise more data than the file has
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--noise={path}: {error}") from error
    if not isinstance(noise, np.ndarray):
        raise UserError(f"--noise={path} holds several arrays: give a .npy file with one")
    if noise.dtype != np.float32 or noise.shape != shape:
        raise UserError(
            f"--noise={path} is {noise.dtype} {noise.shape}; this checkpoint and prompts need float32 {shape}"
        )
    return np.asarray(noise)
