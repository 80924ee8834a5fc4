"""A state dict in memory."""

from collections.abc import Sequence

import numpy as np

from dollar_jax.convert.tables import Rule, restore_lazily
from dollar_jax.types import Params


def restore(table: Sequence[Rule], params: Params) -> dict[str, np.ndarray]:
    """`restore_lazily` at once."""
    return {key: tensor.read() for key, tensor in restore_lazily(table, params).items()}
