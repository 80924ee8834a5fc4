"""Comparisons of folders in the public format, and of what both libraries make of them."""

from pathlib import Path

import numpy as np

from dollar_jax.convert.tensors import open_folder


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """The same keys, dtypes and bits."""
    ours, theirs = open_folder(ours), open_folder(theirs)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert ours[key].dtype == theirs[key].dtype, key
        assert ours[key].tobytes() == theirs[key].tobytes(), key


def relative(ours, theirs) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max())
