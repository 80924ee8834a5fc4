"""The videos of a dataset that training never reads.

The name of a file decides, not its place: when files are added to the data, those that were held out still are.
"""

import hashlib
from collections.abc import Collection

from dollar_jax.data.dataset import Dataset
from dollar_jax.data.pipeline import Rows
from dollar_jax.errors import UserError

LEAST = 2  # held-out videos: one to fit metrics to, one to measure


def is_held_out(name: str, share: float) -> bool:
    """Whether SHA-256 of the name, as a number in 0..1, is below the share."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64


def split(dataset: Dataset, share: float, files: Collection[str], place: str) -> tuple[Dataset, Dataset]:
    """The examples to train on, and those that are held out, in the order of the dataset.

    Args:
      share: share of all files to hold out, 0..1.
      files: names of files to hold out too, as in captions.jsonl.
      place: name of the dataset in messages.
    Raises:
      UserError: the dataset has no file names, or not one of `files`; or of its videos (in a dataset of images, of
        these) fewer than `LEAST` are held out, or none is left to train on.
    """
    if dataset.files is None:
        raise UserError(
            f"{place} was written without the names of its files, which decide what is held out: write it again with"
            " python -m dollar_jax.data, or set --config.data.held_out=0 to measure on videos of the training"
        )
    if missing := set(files) - set(dataset.files):
        raise UserError(f"config.data.held_out_files: {place} has no file {min(missing)}")
    listed, parts, start = set(files), ([], []), 0
    for part in dataset.parts:
        names = dataset.files[start : start + len(part)]
        start += len(part)
        out = [name in listed or is_held_out(name, share) for name in names]
        if start == len(part) and (out.count(True) < LEAST or all(out)):
            raise UserError(
                f"config.data.held_out={share:g} holds out {out.count(True)} of the {len(out)} videos in {place}:"
                f" {LEAST} at least, and not all, are needed; change it, name videos in held_out_files or add more"
            )
        for chosen, wanted in zip(parts, (False, True), strict=True):
            if rows := [row for row, held in enumerate(out) if held == wanted]:
                chosen.append(Rows(part, rows))
    training, held_out = (Dataset(chosen, dataset.info) for chosen in parts)
    return training, held_out
