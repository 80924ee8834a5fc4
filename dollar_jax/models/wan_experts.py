"""The two transformers of Wan 2.2's A14B: one for high noise, one of the same shape for low noise."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dollar_jax.models import wan_dit
from dollar_jax.models.network import Network


def build(
    boundary: float = 875.0,
    dtype: DTypeLike = jnp.float32,
    remat: str = "nothing_saveable",
    attention: str | None = None,
    **config,
) -> Network:
    """Like `wan_dit.build`, with parameters {"high": .., "low": ..}: `high` predicts at times from `boundary` upwards.

    One expert runs if it has all examples of a batch, as in sampling; else both run on the whole batch.

    Args:
      boundary: the first time of the expert for high noise.
      dtype, remat, attention, **config: see `wan_dit.build`.
    Raises:
      UserError: see `wan_dit.build`.
    """
    expert = wan_dit.build(dtype, remat, attention, **config)

    def init(key):
        high, low = jax.random.split(key)
        return {"high": expert.init(high), "low": expert.init(low)}

    def apply(params, latents, times, condition, *rest, **method):
        is_high = times >= boundary

        def high():
            return expert.apply(params["high"], latents, times, condition, *rest, **method)

        def low():
            return expert.apply(params["low"], latents, times, condition, *rest, **method)

        def both():
            return jax.tree.map(choose, high(), low())

        def choose(high, low):
            return jnp.where(jnp.expand_dims(is_high, tuple(range(1, high.ndim))), high, low)

        case = jnp.where(jnp.all(is_high), 0, jnp.where(jnp.any(is_high), 2, 1))
        return lax.switch(case, (high, low, both))

    linears = tuple(f"{name}/{path}" for name in ("high", "low") for path in expert.linears)
    return Network(init, apply, linears)
