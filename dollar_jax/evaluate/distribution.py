"""How far samples are, as a distribution, from data: Frechet distance, energy off the data's subspace, spread.

Single numbers deceive: blur is clean, noise is diverse. `frechet` sees the wrong mean and covariance, `detail` tells
blur from noise where a Gaussian fit is blind, `pooled_deviation` sees a collapse that captions do not name.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Float

from dollar_jax.errors import UserError
from dollar_jax.evaluate.measure import Clips

MOST = 32  # components, where nobody says how many


class Subspace(NamedTuple):
    """The principal space of data, and how data lie in it and off it."""

    origin: Float[np.ndarray, " d"]
    basis: Float[np.ndarray, "d k"]  # orthonormal, by falling variance
    mean: Float[np.ndarray, " k"]  # of the Gaussian within the space
    covariance: Float[np.ndarray, "k k"]
    residual: float  # mean squared distance of data from the space


def fit(latents: Float[np.ndarray, "n f h w c"], components: int = 32) -> Subspace:
    """The principal space of the first half of the data; where data lie is read from the other half.

    In the half it was fitted to, a principal space explains more than it does of new data: 1 would not be right for
    `detail`.

    Raises:
      ValueError: fewer than 4 clips a component; the covariance would be noise.
    """
    if len(latents) < 4 * components:
        raise ValueError(f"{len(latents)} clips are too few for {components} components: {4 * components} or more")
    fitted, held_out = np.split(_flat(latents), [len(latents) // 2])
    origin = fitted.mean(0)
    basis = np.linalg.svd(fitted - origin, full_matrices=False)[2][:components].T
    within, off = _project(held_out, origin, basis)
    return Subspace(origin, basis, within.mean(0), np.cov(within, rowvar=False), float(off.mean()))


def least_clips(components: int) -> int:
    """How many real clips `principal_space` takes at least.

    Raises:
      UserError: no number of components.
    """
    if components < 0:
        raise UserError(f"components = {components}: a space has one or more; 0 takes as many as the clips allow")
    return 4 * max(1, components)


def principal_space(clips: Clips, components: int) -> Subspace:
    """`fit` to the latents of real clips, for `Clips.once`; 0 components are as many as the clips allow, up to `MOST`.

    Raises:
      ValueError: fewer than `least_clips(components)`.
    """
    return fit(clips.latents, components or max(1, min(MOST, len(clips.latents) // 4)))


def frechet(latents: Float[np.ndarray, "n f h w c"], data: Subspace) -> float:
    """Frechet distance between Gaussian fits in the data's principal space, in percent of the data's variance there.

    0: the same Gaussian; 100: all samples are the data's mean. A finite number of samples costs something: compare
    with the same number of real clips.
    """
    within, _ = _project(_flat(latents), data.origin, data.basis)
    distance = gaussian_distance(within.mean(0), np.cov(within, rowvar=False), data.mean, data.covariance)
    return 100 * distance / float(np.trace(data.covariance))


def detail(latents: Float[np.ndarray, "n f h w c"], data: Subspace) -> float:
    """Energy off the data's principal space relative to data: 1 is right, less is over-smooth, more is noise."""
    _, off = _project(_flat(latents), data.origin, data.basis)
    return float(off.mean() / data.residual)


def gaussian_distance(
    mean: Float[np.ndarray, " k"],
    covariance: Float[np.ndarray, "k k"],
    other_mean: Float[np.ndarray, " k"],
    other_covariance: Float[np.ndarray, "k k"],
) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians: |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)."""
    variances, axes = np.linalg.eigh(covariance)
    root = (axes * np.sqrt(np.maximum(variances, 0))) @ axes.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other_covariance @ root), 0)).sum()
    return float(np.sum((mean - other_mean) ** 2) + np.trace(covariance) + np.trace(other_covariance) - 2 * cross)


def pooled_deviation(values: Float[np.ndarray, "n d"], groups: Sequence[str]) -> float:
    """Unbiased standard deviation within groups, pooled over them and over the d dimensions; nan if all are alone."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    freedom = len(values) - len(names)
    if not freedom:
        return float("nan")
    counts = np.bincount(index)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, values)
    centred = values - (sums / counts[:, None])[index]
    return float(np.sqrt(np.sum(centred**2) / (freedom * values.shape[1])))


def _flat(latents: np.ndarray) -> Float[np.ndarray, "n d"]:
    return rearrange(latents, "n f h w c -> n (f h w c)").astype(np.float64)


def _project(
    flat: Float[np.ndarray, "n d"], origin: Float[np.ndarray, " d"], basis: Float[np.ndarray, "d k"]
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, " n"]]:
    """Coordinates within the space, and squared distances from it."""
    centred = flat - origin
    within = centred @ basis
    return within, np.sum(centred**2, axis=1) - np.sum(within**2, axis=1)
