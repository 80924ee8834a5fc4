"""Inception v3 (Szegedy et al., 2015) up to the features before its classifier, as torchvision has it.

Parameters have torchvision's names: `Mixed_5b.branch1x1.conv.weight` there is `Mixed_5b/branch1x1/kernel` here.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from dollar_jax.models.network import Network, from_module

EPSILON = 1e-3  # of the batch norms
# torchvision's weights were trained on inputs in -1..1. Its network expects inputs normalised by ImageNet's mean and
# standard deviation, and undoes this normalisation.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

Window = tuple[int, int]
Step = tuple  # features, then the window of one convolution, or the windows of two parallel convolutions
Branches = Mapping[str, Sequence[Step]]

ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
FORK = (384, (1, 3), (3, 1))


def _a(pool: int) -> Branches:
    return {
        "branch1x1": [(64, ONE)],
        "branch5x5": [(48, ONE), (64, FIVE)],
        "branch3x3dbl": [(64, ONE), (96, THREE), (96, THREE)],
        "branch_pool": [(pool, ONE)],
    }


def _c(n: int) -> Branches:
    return {
        "branch1x1": [(192, ONE)],
        "branch7x7": [(n, ONE), (n, ROW), (192, COLUMN)],
        "branch7x7dbl": [(n, ONE), (n, COLUMN), (n, ROW), (n, COLUMN), (192, ROW)],
        "branch_pool": [(192, ONE)],
    }


_B = {"branch3x3": [(384, THREE)], "branch3x3dbl": [(64, ONE), (96, THREE), (96, THREE)]}
_D = {
    "branch3x3": [(192, ONE), (320, THREE)],
    "branch7x7x3": [(192, ONE), (192, ROW), (192, COLUMN), (192, THREE)],
}
_E = {
    "branch1x1": [(320, ONE)],
    "branch3x3": [(384, ONE), FORK],
    "branch3x3dbl": [(448, ONE), (384, THREE), FORK],
    "branch_pool": [(192, ONE)],
}
STEM = {  # name -> features, window, stride, padded
    "Conv2d_1a_3x3": (32, THREE, 2, False),
    "Conv2d_2a_3x3": (32, THREE, 1, False),
    "Conv2d_2b_3x3": (64, THREE, 1, True),
    "maxpool1": None,
    "Conv2d_3b_1x1": (80, ONE, 1, False),
    "Conv2d_4a_3x3": (192, THREE, 1, False),
    "maxpool2": None,
}
BLOCKS = {  # name -> branches, whether it halves height and width
    "Mixed_5b": (_a(32), False),
    "Mixed_5c": (_a(64), False),
    "Mixed_5d": (_a(64), False),
    "Mixed_6a": (_B, True),
    "Mixed_6b": (_c(128), False),
    "Mixed_6c": (_c(160), False),
    "Mixed_6d": (_c(160), False),
    "Mixed_6e": (_c(192), False),
    "Mixed_7a": (_D, True),
    "Mixed_7b": (_E, False),
    "Mixed_7c": (_E, False),
}


def build() -> Network:
    """The network `apply(params, images [n h w 3]) -> features [n 2048]`.

    Images are 75 x 75 or larger (299 x 299 in torchvision), normalised by ImageNet's mean and standard deviation, as by
    torchvision's transforms. The package vendi-score passes images in 0..1 without this normalisation.
    """
    return from_module(Inception)


class Inception(nnx.Module):
    """See the module's docstring; `build` makes the pure network."""

    def __init__(self, rngs: nnx.Rngs):
        width = 3
        for name, unit in STEM.items():
            if unit:
                setattr(self, name, Unit(width, *unit, rngs=rngs))
                width = unit[0]
        for name, (branches, halves) in BLOCKS.items():
            setattr(self, name, Mixed(width, branches, halves, rngs))
            width = getattr(self, name).width

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n 2048"]:
        """Output of the last block, averaged over space."""
        x = images * (2 * DEVIATION)[None, None, None] + (2 * MEAN - 1)[None, None, None]
        for name, unit in STEM.items():
            x = getattr(self, name)(x) if unit else _max_pool(x)
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return x.mean((1, 2))


class Unit(nnx.Module):
    """Convolution without bias, batch norm with the statistics of training, ReLU."""

    def __init__(self, inputs: int, features: int, window: Window, stride: int, padded: bool, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (*window, inputs, features)))
        self.scale, self.variance = nnx.Param(jnp.ones(features)), nnx.Param(jnp.ones(features))
        self.bias, self.mean = nnx.Param(jnp.zeros(features)), nnx.Param(jnp.zeros(features))
        self.stride, self.padding = stride, "SAME" if padded else "VALID"

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W C"]:
        x = lax.conv_general_dilated(
            x, self.kernel[...], (self.stride,) * 2, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        scale = self.scale[...] / jnp.sqrt(self.variance[...] + EPSILON)
        shift = self.bias[...] - self.mean[...] * scale
        return jax.nn.relu(x * scale[None, None, None] + shift[None, None, None])


class Mixed(nnx.Module):
    """Parallel branches of convolutions with concatenated outputs.

    The branch `branch_pool` begins with a 3 x 3 average pooling. A block that halves the resolution has stride 2 in the
    last step of each branch, and a 3 x 3 max pooling of its input as an additional branch.
    """

    def __init__(self, inputs: int, branches: Branches, halves: bool, rngs: nnx.Rngs):
        self.width = inputs if halves else 0
        for name, steps in branches.items():
            width = inputs
            for labels, (features, *windows), last in _label(name, steps):
                stride = 2 if halves and last else 1
                for label, window in zip(labels, windows, strict=True):
                    setattr(self, label, Unit(width, features, window, stride, stride == 1, rngs))
                width = features * len(windows)
            self.width += width
        self.halves = halves
        self.chains = tuple((name, tuple(labels for labels, *_ in _label(name, s))) for name, s in branches.items())

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W C"]:
        results = []
        for name, chain in self.chains:
            y = _mean_pool(x) if name == "branch_pool" else x
            for labels in chain:
                y = jnp.concatenate([getattr(self, label)(y) for label in labels], axis=-1)
            results.append(y)
        return jnp.concatenate([*results, _max_pool(x)] if self.halves else results, axis=-1)


def _label(name: str, steps: Sequence[Step]) -> list[tuple[tuple[str, ...], Step, bool]]:
    """For each step: (torchvision's names of its convolutions, the step, whether it is the last)."""
    count = len(steps)
    return [
        (
            (name if count == 1 else f"{name}_{i}",) if len(step) == 2 else (f"{name}_{i}a", f"{name}_{i}b"),
            step,
            i == count,
        )
        for i, step in enumerate(steps, 1)
    ]


def _max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n H W c"]:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def _mean_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    # The mean is over 9 pixels at the border too, including the zeros of the padding.
    return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9
