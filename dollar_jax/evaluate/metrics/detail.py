"""Detail: energy of latents outside the principal space of real latents."""

from collections.abc import Callable

from dollar_jax.evaluate import distribution
from dollar_jax.evaluate.measure import Clips, Column


class Detail:
    """Energy outside the principal space of real latents, relative to real latents, see `distribution.detail`.

    Args:
      components: as for `frechet`.
    """

    columns = (
        Column(
            "hf",
            "Detail",
            "Energy in directions where real clips hardly vary, relative to them. Below 1: too smooth; above 1: noise.",
            better="near",
            ideal=1.0,
        ),
    )

    def __init__(self, components: int = 0):
        self._components, self.least_clips = components, distribution.least_clips(components)

    def fit(self, data: Clips) -> Callable[[Clips], float]:
        space = data.once(distribution.principal_space, self._components)
        return lambda clips: distribution.detail(clips.latents, space)


detail = Detail  # its name in a config
