"""The world of pairs: two shapes, their relation and how they move, a world that is harder than configs/shapes.py.

    python -m dollar_jax.main --config=configs/pairs.py --workdir=out/pairs

All else is configs/shapes.py. Of this config the VAE alone has been trained to its end (32.5 dB on new clips, all of
whose captions are read from its videos); teacher and students have not been measured yet.
"""

from ml_collections import ConfigDict

from configs import shapes
from dollar_jax.config import named


def get_config() -> ConfigDict:
    """The world of pairs."""
    config = shapes.get_config()
    config.data.update({"world": "pairs", "clips": 16384})
    config.video.update({"frames": 17, "height": 48, "width": 48})
    config.show_captions = (
        "a red ring left of a blue square moving apart",
        "a green square above a yellow cross moving closer",
        "a blue cross left of a green ring standing still",
    )
    config.vae.iterations = 2500
    config.text.length = 11
    config.teacher.update({"iterations": 10_000, "guidance": 1.0})
    config.teacher.network.update(
        {"num_layers": 5, "sample_width": 12, "sample_height": 12, "sample_frames": 17, "patch_size_t": 5}
    )
    config.report.metrics = named(
        **{"dollar_jax.evaluate.pairs:alignment": {}, "dollar_jax.evaluate.pairs:clean_db": {}},
        frechet={"components": 32},
        detail={"components": 32},
        **{"dollar_jax.evaluate.pairs:spread": {}},
        vendi={},
    )
    config.report.captions = 72
    return config
