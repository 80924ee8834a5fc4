"""What can be measured of any videos: how they lie beside data, and how many different ones there are of a prompt."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dollar_jax.errors import UserError
from dollar_jax.evaluate.distribution import Subspace, fit, frechet, hf
from dollar_jax.evaluate.vendi import diversity

COMPONENTS = 32
LEAST_CLIPS = 4  # for `reference`
KEY_FRAMES = 3  # of Eq. 17: the first, the middle and the last frame


def reference(
    frames: Float[np.ndarray, "n F H W 3"], latents: Float[np.ndarray, "n f h w c"], captions: Sequence[str]
) -> Subspace:
    """What `measure` compares with: the principal space of the latents of real clips; a smaller one of few clips."""
    del frames, captions
    return fit(latents, components=max(1, min(COMPONENTS, len(latents) // 4)))


def measure(
    frames: Float[np.ndarray, "n F H W 3"],
    latents: Float[np.ndarray, "n f h w c"],
    captions: Sequence[str],
    reference: Subspace,
) -> dict[str, float]:
    """frechet and hf of `distribution`; vendi, Eq. 17 on pixels, mean over captions, and vendi_std. Frames in 0..1.

    Raises:
      UserError: not as many clips of each caption.
    """
    names, index, counts = np.unique(np.asarray(captions), return_inverse=True, return_counts=True)
    if len(set(counts)) > 1:
        raise UserError(f"Vendi needs as many videos of each prompt, not {counts.min()} to {counts.max()}")
    by_caption = frames[np.argsort(index, kind="stable")].reshape(len(names), -1, *frames.shape[1:])
    diversities = diversity(by_caption, spacing=max(1, (frames.shape[1] - 1) // (KEY_FRAMES - 1)))
    return {
        "frechet": frechet(latents, reference),
        "hf": hf(latents, reference),
        "vendi": float(diversities.mean()),
        "vendi_std": float(diversities.std()),
    }
