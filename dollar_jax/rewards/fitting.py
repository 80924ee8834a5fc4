"""Fits renderings of shapes to the pixels of clips: the common part of `rewards.shapes` and `rewards.pairs`.

Lengths are in pixels of the video, and points are (x, y) from the upper left corner, y downwards.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dollar_jax.data.shapes import COLOURS, SHAPES, coverage, path

Masks = Float[np.ndarray, "b f h w"]
Numbers = Float[np.ndarray, "b"]
Indices = Int[np.ndarray, "b"]
Flags = Bool[np.ndarray, "b"]

PALETTE = np.array(list(COLOURS.values()), np.float32)
HUES = PALETTE - PALETTE.mean(1, keepdims=True)
HUES /= np.linalg.norm(HUES, axis=1, keepdims=True)
_STEPS = 5  # steps of Gauss-Newton, which starts within a pixel or two of the solution
_STEP = 0.5  # pixels, step of the finite differences


def read_in_chunks(read: Callable, video: Float[Array | np.ndarray, "b f h w 3"], size: int):
    """The named tuple of arrays that `read` makes of clips, read `size` at a time."""
    video = np.asarray(video, np.float32)
    parts = [read(video[start : start + size]) for start in range(0, len(video), size)]
    return type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))


def of_found(agrees: Mapping[str, Flags], found: Flags) -> dict[str, Flags]:
    """What agrees with the captions, only in clips where a shape was found; and 'all' of it."""
    agrees = {name: right & found for name, right in agrees.items()}
    return agrees | {"all": np.logical_and.reduce(list(agrees.values()))}


def best(mask: Masks, starts: Float[np.ndarray, "b f 2"], sizes: tuple[float, float], explained: float):
    """Fits each shape by least squares over position, velocity and size, and takes the one with the smallest residual.

    Args:
      mask: estimate of the share of each pixel that the shape covers.
      starts: centres in each frame, from which the fit of the path starts.
      sizes: smallest and largest size of the world.
      explained: share of the mask's energy that the best rendering must explain, else the clip shows no shape.
    Returns:
      Index into SHAPES [b], position [b 2], velocity [b 2], size [b], and whether there is such a shape at all [b].
    """
    fits = [_fit(shape, mask, starts, sizes) for shape in SHAPES]
    shape = np.argmin([residual for *_, residual in fits], axis=0)
    chosen = shape, np.arange(len(shape))
    position, velocity, size, residual = (np.stack(values)[chosen] for values in zip(*fits, strict=True))
    return shape, position, velocity, size, residual < (1 - explained) * (mask**2).sum((1, 2, 3))


def centroids(weights: Masks, reach: float) -> Float[np.ndarray, "b f 2"]:
    """The centre of each frame's weights, in x and in y at most `reach` from the middle of the image."""
    pixels = weights.shape[-1]
    middles = np.arange(pixels, dtype=np.float32) + 0.5 - pixels / 2
    moments = np.stack([weights.sum(2) @ middles, weights.sum(3) @ middles], -1)
    return pixels / 2 + np.clip(moments / np.maximum(weights.sum((2, 3)), 1)[..., None], -reach, reach)


def _fit(shape: str, mask: Masks, starts: Float[np.ndarray, "b f 2"], sizes: tuple[float, float]):
    """Fits `shape` to `mask` by Gauss-Newton. Returns position, velocity, size and the squared residual [b]."""
    frames, pixels = mask.shape[1:3]
    times = np.arange(frames) - (frames - 1) / 2
    # [f 3 5]: maps the clip's (x, y, velocity in x, velocity in y, size) to each frame's (x, y, size).
    basis = np.zeros((frames, 3, 5))
    basis[:, [0, 1, 2], [0, 1, 4]] = 1
    basis[:, 0, 2] = basis[:, 1, 3] = times
    line = np.linalg.pinv(basis[:, :2, :4].reshape(-1, 4))
    start = starts.reshape(len(mask), -1) @ line.T
    values = np.concatenate([start, np.full((len(mask), 1), np.mean(sizes))], 1)
    limits = 0.8 * sizes[0], 1.2 * sizes[1]  # with a free size, any blob would fit

    def masks(values, shift=(0, 0, 0)):
        x_y_size = np.einsum("fij,bj->bfi", basis, values) + shift
        return coverage(shape, x_y_size[..., 2], x_y_size[..., :2], pixels)

    for _ in range(_STEPS):
        error = mask - masks(values)
        slopes = np.stack([masks(values, step) - masks(values, -step) for step in np.eye(3) * _STEP], 2) / (2 * _STEP)
        slopes = slopes.reshape(*slopes.shape[:3], -1)
        hessian = np.einsum("fij,bfik,fkl->bjl", basis, slopes @ slopes.swapaxes(2, 3), basis, optimize=True)
        gradient = np.einsum("fij,bfi->bj", basis, (slopes @ error.reshape(*error.shape[:2], -1, 1))[..., 0])
        values = values + np.linalg.solve(hessian + 1e-3 * np.eye(5), gradient[..., None])[..., 0]
        values[:, 4] = np.clip(values[:, 4], *limits)
    return values[:, :2], values[:, 2:4], values[:, 4], ((mask - masks(values)) ** 2).sum((1, 2, 3))


def render_masks(
    shape: Indices,
    size: Numbers,
    position: Float[np.ndarray, "b 2"],
    velocity: Float[np.ndarray, "b 2"],
    frames: int,
    pixels: int,
) -> Masks:
    """Masks of clips with different shapes, by their indices into SHAPES."""
    masks = np.empty((len(shape), frames, pixels, pixels), np.float32)
    for kind, name in enumerate(SHAPES):
        of = shape == kind
        sizes = np.repeat(size[of, None], frames, 1)
        masks[of] = coverage(name, sizes, path(position[of], velocity[of], frames), pixels)
    return masks


def background_of(
    video: Float[np.ndarray, "b f h w 3"], masks: Float[np.ndarray, "b k f h w"], colours: Float[np.ndarray, "b k 3"]
) -> Numbers:
    """Least-squares grey level of the background behind k shapes: video = grey (1 - sum masks) + sum colours masks."""
    uncovered = 1 - masks.sum(1)
    rest = video.mean(-1) - np.einsum("bkfhw,bk->bfhw", masks, colours.mean(-1))
    return (uncovered * rest).sum((1, 2, 3)) / (uncovered**2).sum((1, 2, 3))


def compose(
    masks: Float[np.ndarray, "b k f h w"], colours: Float[np.ndarray, "b k 3"], background: Numbers
) -> Float[np.ndarray, "b f h w 3"]:
    """Clips: each mask filled with its colour, on the clip's grey background."""
    background = background[:, None].astype(np.float32)
    return background[..., None, None, None] + np.einsum("bkfhw,bkc->bfhwc", masks, colours - background[..., None])


def psnr(video: Float[np.ndarray, "b f h w 3"], other: Float[np.ndarray, "b f h w 3"]) -> Numbers:
    """PSNR of each clip in dB."""
    return -10 * np.log10(((video - other) ** 2).mean((1, 2, 3, 4)))
