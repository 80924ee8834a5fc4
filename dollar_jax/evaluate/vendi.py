"""Diversity among the videos of a prompt: the Vendi score of Eq. 17."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Float, Real, UInt8

from dollar_jax.data.video import read_video
from dollar_jax.errors import UserError
from dollar_jax.evaluate.embedding import Embed
from dollar_jax.evaluate.samples import find_samples
from dollar_jax.progress import counted


def vendi(features: Float[np.ndarray, "n d"]) -> float:
    """The effective number of different samples: 1 (all equal) .. n (all orthogonal).

    exp of the entropy of the eigenvalues of K / n, where K is the matrix of cosine similarities (Friedman and Dieng,
    2022). Zero vectors, the features of black frames, count as equal to each other and orthogonal to all others.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.hstack([features / np.where(norms == 0, 1, norms), norms == 0])
    shares = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    shares = shares[shares > 0]  # rounding makes zero eigenvalues slightly positive or negative
    return float(np.exp(-np.sum(shares * np.log(shares))))


def diversity(frames: Real[np.ndarray, "p n f h w 3"], spacing: int, embed: Embed) -> Float[np.ndarray, " p"]:
    """Eq. 17 for each of p prompts: the Vendi score of the n videos at a key frame, averaged over the key frames.

    Args:
      frames: n videos of each prompt.
      spacing: frames from one key frame to the next; the first frame is a key frame (paper: 20 of 128 frames, so
        K = 7).
      embed: frames of n videos -> features [n, d]. The paper uses pixels and Inception v3.
    Returns:
      Scores 1 .. n, one for each prompt; the paper reports their mean and standard deviation.
    """
    key_frames = rearrange(frames[:, :, ::spacing], "p n k h w c -> p k n h w c")
    return np.array([np.mean([vendi(embed(frame)) for frame in prompt]) for prompt in key_frames])


def diversity_of_folder(folder: Path, spacing: int, embed: Embed) -> tuple[dict[int, float], int, int]:
    """Eq. 17 for a folder written by `python -m dollar_jax.sample`, with the videos of one prompt in memory at a time.

    Args:
      folder: folder of `{prompt:05d}-{video}.mp4`.
      spacing, embed: as in `diversity`; frames are uint8.
    Returns:
      (number of the prompt -> diversity, number n of videos of each prompt, smallest number K of key frames).
    Raises:
      UserError: prompts have fewer than two videos, or different numbers of them; or videos differ in size or length.
    """
    groups = defaultdict(list)
    for name, path in find_samples(folder).items():
        groups[name.prompt].append(path)
    counts = sorted({len(paths) for paths in groups.values()})
    if len(counts) > 1 or counts[0] < 2:
        few = next(prompt for prompt, paths in groups.items() if len(paths) == counts[0])
        raise UserError(
            f"{folder}: Vendi needs the same number of videos of each prompt, at least 2; prompt {few} has {counts[0]}"
        )
    diversities, key_frames = {}, []
    for prompt, paths in counted(groups.items(), "vendi", "prompt", len(groups)):
        frames = _key_frames(paths, spacing)
        key_frames.append(frames.shape[1])
        diversities[prompt] = float(diversity(frames[None], 1, embed)[0])
    return diversities, counts[0], min(key_frames)


def _key_frames(paths: list[Path], spacing: int) -> UInt8[np.ndarray, "n k h w 3"]:
    videos = [read_video(path)[0] for path in paths]
    for path, video in zip(paths, videos, strict=True):
        if video.shape != videos[0].shape:
            shapes = " and ".join(" x ".join(map(str, shape[:3])) for shape in (videos[0].shape, video.shape))
            raise UserError(f"{paths[0].name} and {path.name} differ in frames, height or width: {shapes}")
    return np.stack([video[::spacing] for video in videos])
