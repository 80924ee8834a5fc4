"""Samples numbered videos of a model in batches; the numbers of prompt and video determine the noise."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from dollar_jax.checkpoint import Card
from dollar_jax.errors import UserError
from dollar_jax.pipeline import Latents, Pipeline, noise_at

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
) -> Iterator[Made]:
    """Yields each sample in order with its latents and its frames. Only one batch is in memory.

    Args:
      steps, guidance: see `Pipeline.videos`.
      batch_size: largest number of videos in a batch.
      noise: initial noise of each sample; None: drawn from the seed.
      negative_prompt: the prompt that guidance moves away from; None: the card's.
    """
    size = min(batch_size, len(samples))
    negative = None if negative_prompt is None else model.encode_text([negative_prompt])
    for start in range(0, len(samples), batch_size):
        # The last batch is padded, so that only one shape is compiled.
        index = np.minimum(np.arange(start, start + size), len(samples) - 1)
        rows = [samples[i] for i in index]
        condition = model.encode_text([row.caption for row in rows])
        begin, keys = noise_of(model.card, seed, rows)
        begin = begin if noise is None else noise[index]
        made = model.videos(condition, begin, keys, steps=steps, guidance=guidance, negative=negative, batch_size=size)
        latents, frames = next(made)
        yield from zip(samples[start : start + size], latents, frames, strict=False)


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
