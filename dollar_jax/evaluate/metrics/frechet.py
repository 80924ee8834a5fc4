"""How far a model's latents are, as a distribution, from data's."""

from collections.abc import Callable

from dollar_jax.evaluate import distribution
from dollar_jax.evaluate.measure import Clips, Column


class Frechet:
    """Fréchet distance in the principal space of real latents, see `distribution.frechet`.

    Args:
      components: of the space; 0: 32, or of fewer than 128 clips a quarter as many as there are clips.
    """

    columns = (
        Column(
            "frechet",
            "Fréchet distance",
            "How far the clips as a whole lie from real ones: 0 is the same distribution, 100 one average clip"
            " repeated.",
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
