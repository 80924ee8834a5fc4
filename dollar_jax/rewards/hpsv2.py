"""Human preference score v2 (arXiv 2306.09341)."""

from dollar_jax.rewards.clip import Preference, letterboxed


class HPSv2(Preference):
    """cos(image, text), without a logit scale, as `hpsv2.score` returns it; about .2 to .3 for photographs.

    Weights: HPS_v2_compressed.pt or HPS_v2.1_compressed.pt, converted.
    """

    to_images = staticmethod(letterboxed)


hpsv2 = HPSv2  # its name in a config
