"""Fréchet distance between the distributions of a model's videos and of real videos, by latents or features."""

from collections.abc import Callable
from dataclasses import replace

from dollar_jax.errors import UserError
from dollar_jax.evaluate import distribution
from dollar_jax.evaluate.embedding import embedder, named_by, of_key_frames
from dollar_jax.evaluate.measure import Clips, Column


class Frechet:
    """Fréchet distance in the principal space of real latents, see `distribution.frechet`; or of features.

    Args:
      components: dimensions of the space; 0: a quarter of the number of real clips, at most 32.
      features: "" for latents; else as for `vendi`: a video is then the features of its key frames. The column is
        `frechet_NAME`.
      weights: as for `vendi`.
      key_frames: number of frames, evenly spaced from the first to the last; latents take all.
    Raises:
      UserError: no number of components or key frames, unknown features, or weights that do not fit.
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

    def __init__(self, components: int = 0, features: str = "", weights: str = "", key_frames: int = 3):
        self._components, self.least_clips = components, distribution.least_clips(components)
        self._embed, self._key_frames = None, key_frames
        if features:
            if key_frames < 1:
                raise UserError(f"key_frames = {key_frames}: 1 or more")
            name, (column,) = named_by(features), self.columns
            self.columns = (replace(column, key=f"frechet_{name}", label=f"{column.label} ({name})"),)
            self._embed = embedder(features, weights)

    def fit(self, data: Clips) -> Callable[[Clips], float]:
        if self._embed is None:
            latent_space = data.once(distribution.principal_space, self._components)
            return lambda clips: distribution.frechet(clips.latents, latent_space)
        space = distribution.space_of(of_key_frames(data, self._embed, self._key_frames), self._components)
        return lambda clips: distribution.frechet(of_key_frames(clips, self._embed, self._key_frames), space)


frechet = Frechet  # its name in a config
