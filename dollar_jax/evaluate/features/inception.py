"""The features of the paper's Vendi (Inception): torchvision's Inception v3."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dollar_jax.convert import inception as keys
from dollar_jax.convert.tables import convert
from dollar_jax.convert.tensors import open_file
from dollar_jax.errors import UserError
from dollar_jax.models import inception as network
from dollar_jax.models.network import parameter_shapes
from dollar_jax.types import Params

SIDE = 299


def inception(frames: UInt8[np.ndarray, "n h w 3"], weights: str = "") -> Float[np.ndarray, "n 2048"]:
    """The 2048 features before the classifier, from the middle square of the frame at 299 x 299.

    Args:
      frames: frames of any size; the preprocessing is that of the package vendi-score.
      weights: torchvision's file (inception_v3_google-0cc3c7bd.pth), or timm's inception_v3.tv_in1k as safetensors.
    Raises:
      UserError: the weights are missing, or belong to another network.
    """
    if not weights:
        raise UserError("--features=inception needs --weights=FILE: torchvision's inception_v3_google-0cc3c7bd.pth")
    squares = np.stack([_square(frame) for frame in frames])
    return np.asarray(_apply()(_load(weights), squares.astype(np.float32) / 255))


def _square(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
    """Resizes the shorter side to `SIDE`, and crops the middle of the longer side."""
    height, width = frame.shape[:2]
    size = tuple(int(SIDE * length / min(height, width)) for length in (width, height))
    image = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    left, top = (round((length - SIDE) / 2) for length in size)
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))


@cache
def _apply() -> Callable:
    return jax.jit(network.build().apply)


@cache
def _load(path: str) -> Params:
    """Reads the parameters from a file."""
    target = parameter_shapes(network.build())
    tensors = keys.select(open_file(Path(path)))
    return jax.device_put(convert(keys.table(target), tensors, target))
