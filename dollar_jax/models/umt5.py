"""The encoder of umT5: T5 v1.1's, with numbers for distances in each block, not attending to padding, and zero there.

The zeros are what Wan was trained with: its transformer attends to all places of a caption, padding too.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike

from dollar_jax.models import t5
from dollar_jax.models.network import Network


def build(dtype: DTypeLike = jnp.float32, **config) -> Network:
    """Like `t5.build`, whose last three sizes are given here.

    Raises:
      UserError: unknown config.
    """
    return t5.build(dtype, **config, attend_padding=False, zero_padding=True, own_biases=True)
