"""Distances between the distribution of samples and the data: Frechet distance, energy off the data's subspace, spread.

One metric is not enough: blurred samples look clean, and noise looks diverse. `frechet` measures mean and covariance,
`detail` distinguishes blur from noise outside of the Gaussian fit, `pooled_deviation` detects a collapse of attributes
that the captions do not name.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dollar_jax.errors import UserError
from dollar_jax.evaluate.measure import Clips

MOST = 32  # components, where nobody says how many


class Subspace(NamedTuple):
    """The principal subspace of data, with the statistics of data inside it and the energy outside."""

    origin: Float[np.ndarray, " d"]
    basis: Float[np.ndarray, "d k"]  # orthonormal, in order of decreasing variance
    mean: Float[np.ndarray, " k"]  # mean of the Gaussian in the subspace
    covariance: Float[np.ndarray, "k k"]
    residual: float  # mean squared distance of data from the subspace


def fit(latents: Float[np.ndarray, "n ..."], components: int) -> Subspace:
    """Fits the principal subspace to the first half of the data, and its statistics to the other half.

    A principal subspace explains more of the data it was fitted to than of new data; with statistics of the same half,
    `detail` of real data would not be 1.

    Raises:
      ValueError: there are fewer than 4 clips per component; the covariance would be noise.
    """
    if len(latents) < 4 * components:
        raise ValueError(f"{len(latents)} clips are too few for {components} components: {4 * components} or more")
    fitted, held_out = np.split(_flat(latents), [len(latents) // 2])
    origin = fitted.mean(0)
    basis = np.linalg.svd(fitted - origin, full_matrices=False)[2][:components].T
    within, off = _project(held_out, origin, basis)
    return Subspace(origin, basis, within.mean(0), _covariance(within), float(off.mean()))


def least_clips(components: int) -> int:
    """How many real clips `principal_space` takes at least.

    Raises:
      UserError: no number of components.
    """
    if components < 0:
        raise UserError(f"components = {components}: a space has one or more; 0 takes as many as the clips allow")
    return 4 * max(1, components)


def principal_space(clips: Clips, components: int) -> Subspace:
    """`space_of` the latents of real clips, for `Clips.once`."""
    return space_of(clips.latents, components)


def space_of(points: Float[np.ndarray, "n ..."], components: int) -> Subspace:
    """`fit` to points, latents or features of real clips; 0 components are as many as they allow, up to `MOST`.

    Raises:
      ValueError: fewer points than `least_clips(components)`.
    """
    return fit(points, components or max(1, min(MOST, len(points) // 4)))


def frechet(latents: Float[np.ndarray, "n ..."], data: Subspace) -> float:
    """Frechet distance of Gaussian fits in the data's principal subspace, in percent of the data's variance there.

    0: the same Gaussian; 100: all samples equal the data's mean. The finite number of samples increases the distance:
    compare with the distance of the same number of real clips.
    """
    within, _ = _project(_flat(latents), data.origin, data.basis)
    distance = gaussian_distance(within.mean(0), _covariance(within), data.mean, data.covariance)
    return 100 * distance / float(np.trace(data.covariance))


def detail(latents: Float[np.ndarray, "n f h w c"], data: Subspace) -> float:
    """Energy off the principal subspace, divided by that of data: 1 is right, less is too smooth, more is noise."""
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
    """Unbiased standard deviation within groups, pooled over groups and dimensions; nan if each group has one value."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    freedom = len(values) - len(names)
    if not freedom:
        return float("nan")
    counts = np.bincount(index)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, values)
    centred = values - (sums / counts[:, None])[index]
    return float(np.sqrt(np.sum(centred**2) / (freedom * values.shape[1])))


def _flat(latents: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n k"]:
    return latents.reshape(len(latents), -1).astype(np.float64)


def _covariance(within: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k k"]:
    return np.atleast_2d(np.cov(within, rowvar=False))  # NumPy's of one dimension is a number


def _project(
    flat: Float[np.ndarray, "n d"], origin: Float[np.ndarray, " d"], basis: Float[np.ndarray, "d k"]
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, " n"]]:
    """Coordinates in the subspace, and squared distances from it."""
    centred = flat - origin
    within = centred @ basis
    return within, np.sum(centred**2, axis=1) - np.sum(within**2, axis=1)
