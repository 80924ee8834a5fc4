"""Comparisons of folders in the public format."""

from pathlib import Path

from dollar_jax.convert.tensors import open_folder


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """The same keys, dtypes and bits."""
    ours, theirs = open_folder(ours), open_folder(theirs)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert ours[key].dtype == theirs[key].dtype, key
        assert ours[key].tobytes() == theirs[key].tobytes(), key
