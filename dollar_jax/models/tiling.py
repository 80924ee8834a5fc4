"""Encoding and decoding in overlapping tiles, as in diffusers' `enable_tiling`, with the memory of one tile.

The autoencoder processes each tile as a video of its own. In the overlap of two tiles, the first fades into the second.
Sizes are in rows and columns of latents, both for encoding and for decoding. Any autoencoder with the methods `encode`
and `decode` can be used. diffusers blends the pixels of Wan 2.2 in patches of 2 x 2.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dollar_jax.errors import UserError
from dollar_jax.models.network import Network
from dollar_jax.types import Latent, Params, Video

Size = Sequence[int]  # rows and columns
Image = Float[Array, "b f h w c"]  # pixels or latents

TILE = (30, 45)  # as in the public network, for videos of 480 x 720 pixels: a tile has 240 x 360 pixels
OVERLAP = (5, 9)  # as in the public network: a sixth of the rows and a fifth of the columns of a tile


def in_tiles(autoencoder: Network) -> Network:
    """An autoencoder with the same parameters that encodes and decodes in tiles of size `TILE`."""
    methods = {"encode": encode, "decode": decode}
    return Network(autoencoder.init, lambda params, x, method: methods[method](autoencoder, params, x))


def encode(
    autoencoder: Network, params: Params, video: Video, tile: Size = TILE, overlap: Size = OVERLAP
) -> tuple[Latent, Latent]:
    """Mean and log variance of the latents. Tiles are blended after the autoencoder has clipped the log variance.

    Raises:
      UserError: the overlap is negative, or not smaller than a tile.
    """

    def moments(video: Video) -> Latent:
        return jnp.concatenate(autoencoder.apply(params, video, method="encode"), axis=-1)

    mean, log_variance = jnp.split(by_tiles(moments, video, tile, overlap), 2, axis=-1)
    return mean, log_variance


def decode(
    autoencoder: Network, params: Params, latents: Latent, tile: Size = TILE, overlap: Size = OVERLAP
) -> Float[Array, "b F H W rgb"]:
    """The video of unscaled latents.

    Raises:
      UserError: the overlap is negative, or not smaller than a tile.
    """
    return by_tiles(partial(autoencoder.apply, params, method="decode"), latents, tile, overlap)


def by_tiles(network: Callable[[Image], Array], x: Image, tile: Size, overlap: Size) -> Float[Array, "b f_ h_ w_ c_"]:
    """network(x), computed tile by tile if x is larger than a tile.

    Either x or the result is latents: the one with fewer rows and columns. Tiles at the lower and right edges are
    smaller. One loop runs over all tiles of a shape, so that the program does not grow with the number of tiles.
    """
    if not all(0 <= shared < size for shared, size in zip(overlap, tile, strict=True)):
        raise UserError(f"tiles of {tile} latents cannot overlap by {overlap}: give 0 or more, less than a tile")
    before, after = np.array(x.shape[2:4]), np.array(jax.eval_shape(network, x).shape[2:4])
    latents = np.minimum(before, after)
    if (latents <= tile).all():
        return network(x)
    rows, columns = map(pieces, latents.tolist(), tile, overlap)
    groups = defaultdict(list)
    for (top, height), (left, width) in product(rows, columns):
        groups[height, width].append((top, left))
    tiles, zoom = {}, before // latents
    for shape, corners in groups.items():
        one = partial(at_corner, network, x, size=(zoom * shape).tolist())
        tiles |= zip(corners, lax.map(one, zoom * corners), strict=True)
    grid = [[tiles[top, left] for left, _ in columns] for top, _ in rows]
    zoom = after // latents
    return stitch(grid, (zoom * tile).tolist(), (zoom * overlap).tolist())


def pieces(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Start and length of the tiles along one axis."""
    return [(start, min(tile, length - start)) for start in range(0, length, tile - overlap)]


def at_corner(network: Callable[[Image], Array], x: Image, corner: Int[Array, "2"], size: Size) -> Array:
    """network(part of x), where the part has its upper left corner at `corner` and this size."""
    for axis in (0, 1):
        x = lax.dynamic_slice_in_dim(x, corner[axis], size[axis], axis + 2)
    return network(x)


def stitch(grid: Sequence[Sequence[Array]], tile: Size, overlap: Size) -> Image:
    """Joins a grid of tiles. Each tile is blended with the blended tile above it, then with the one to its left."""
    rows, above = [], None
    for row in grid:
        if above:
            row = [fade(*pair, overlap[0], axis=2) for pair in zip(above, row, strict=True)]
        above = list(accumulate(row, partial(fade, overlap=overlap[1], axis=3)))
        kept = [x[:, :, : tile[0] - overlap[0], : tile[1] - overlap[1]] for x in above]
        rows.append(jnp.concatenate(kept, axis=3))
    return jnp.concatenate(rows, axis=2)


def fade(x: Image, y: Float[Array, "b f h_ w_ c"], overlap: int, axis: int) -> Float[Array, "b f h_ w_ c"]:
    """Blends the first n positions of y along the axis with the last n positions of x. Returns the new y.

    At position k, y has the weight k / n. n is the overlap, or less if a tile is smaller.
    """
    n = min(overlap, x.shape[axis], y.shape[axis])
    end = lax.slice_in_dim(x, x.shape[axis] - n, None, axis=axis)
    start, rest = jnp.split(y, [n], axis=axis)
    weight = np.expand_dims(np.arange(n, dtype=np.float32) / max(n, 1), [i for i in range(y.ndim) if i != axis])
    return jnp.concatenate([end * (1 - weight) + start * weight, rest], axis=axis)
