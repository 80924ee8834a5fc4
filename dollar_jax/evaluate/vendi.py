"""Diversity of the videos of a prompt: the Vendi score of Eq. 17."""

from collections.abc import Callable

import numpy as np
from einops import rearrange
from jaxtyping import Float, Real


def vendi(features: Float[np.ndarray, "n d"]) -> float:
    """The effective number of different samples, 1 (all the same) .. n (all orthogonal).

    exp of the entropy of the eigenvalues of K / n, where K holds the cosine similarities (Friedman and Dieng, 2022).
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    shares = shares[shares > 0]  # rounding leaves zero eigenvalues a little to either side
    return float(np.exp(-np.sum(shares * np.log(shares))))


def pixels(frames: Real[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
    """The features of the paper's Vendi (Pixel): the frame itself."""
    return rearrange(frames, "n h w c -> n (h w c)").astype(np.float64)


def diversity(
    frames: Real[np.ndarray, "p n f h w 3"],
    spacing: int,
    embed: Callable[[Real[np.ndarray, "n h w 3"]], Float[np.ndarray, "n d"]] = pixels,
) -> Float[np.ndarray, " p"]:
    """Eq. 17 for each of p prompts: the Vendi score among its n videos at a key frame, averaged over the key frames.

    Args:
      frames: n videos of each prompt.
      spacing: from one key frame to the next, the first frame being one (paper: 20 of 128 frames, so K = 7).
      embed: features of n frames. The paper shows pixels and Inception v3.
    Returns:
      1 .. n for each prompt; the paper reports their mean and standard deviation.
    """
    key_frames = rearrange(frames[:, :, ::spacing], "p n k h w c -> p k n h w c")
    return np.array([np.mean([vendi(embed(frame)) for frame in prompt]) for prompt in key_frames])
