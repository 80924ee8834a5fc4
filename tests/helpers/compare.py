"""What two libraries make of the same weights."""

import numpy as np
import torch
from einops import rearrange


def relative(ours, theirs) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max())


def assert_same(actual, expected, tolerance: float = 1e-5) -> None:
    """The same shape, and no larger relative difference."""
    assert actual.shape == expected.shape
    assert relative(actual, expected) <= tolerance


def ours(x: torch.Tensor) -> np.ndarray:
    """A video of PyTorch in our layout."""
    return rearrange(x.numpy(), "b c f h w -> b f h w c")
