"""The world of pairs: two shapes, their relation and how they move, a world that is harder than configs/shapes.py.

    python -m dollar_jax.main --config=configs/pairs.py --workdir=out/pairs

All else is configs/shapes.py. The teacher needs guidance, and the students learn the guided teacher (Eq. 9).
docs/evidence.md compares their recipes.
"""

from ml_collections import ConfigDict

from configs import shapes
from dollar_jax.config import named, set_named


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
    # "a red ring left of a blue square" has the words of "a blue ring left of a red square": their order matters.
    config.text.network.update({"d_model": 64, "num_heads": 8, "distance_std": 3.0})
    config.teacher.update({"iterations": 5000, "guidance": 3.0})
    config.teacher.network.update(
        {
            "num_layers": 5,
            "text_embed_dim": 64,
            "sample_width": 12,
            "sample_height": 12,
            "sample_frames": 17,
            "patch_size_t": 5,
        }
    )
    # The student learns the guided teacher, and is sampled without guidance.
    set_named(config.generator.objectives, {"variational_score": {"guidance": 3.0}, "consistency": {"guidance": 3.0}})
    config.report.metrics = named(
        **{"dollar_jax.evaluate.pairs:alignment": {}, "dollar_jax.evaluate.pairs:clean_db": {}},
        frechet={"components": 32},
        detail={"components": 32},
        **{"dollar_jax.evaluate.pairs:spread": {}},
        vendi={},
    )
    config.report.update({"captions": 72, "teacher_guidance": (0.0, 1.0, 7.0)})
    return config
