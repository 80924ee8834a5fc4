"""Fréchet distance between the distributions of a model's latents and of real latents."""

from collections.abc import Callable

from dollar_jax.evaluate import distribution
from dollar_jax.evaluate.measure import Clips, Column


class Frechet:
    """Fréchet distance in the principal space of real latents, see `distribution.frechet`.

    Args:
      components: dimensions of the space; 0: a quarter of the number of real clips, at most 32.
    """

    columns = (
        Column(
            "frechet",
            "Fréchet distance",
            "Distance between the distributions of the clips and of real clips: 0 if they are the same, 100 for one"
            " average clip repeated.",
            better="lower",
            ideal=0.0,
        ),
    )

    def __init__(self, components: int = 0):
        self._components, self.least_clips = components, distribution.least_clips(components)

    def fit(self, data: Clips) -> Callable[[Clips], float]:
        space = data.once(distribution.principal_space, self._components)
        return lambda clips: distribution.frechet(clips.latents, space)


frechet = Frechet  # its name in a config
