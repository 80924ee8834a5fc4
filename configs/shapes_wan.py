"""The shapes world with the networks of Wan: its kind of VAE, text encoder and transformer, a shifted flow, UniPC.

    python -m dollar_jax.main --config=configs/shapes_wan.py --workdir=out/shapes_wan

All else is configs/shapes.py.
"""

from ml_collections import ConfigDict

from configs import shapes
from dollar_jax.diffusion import make_schedule

SCHEDULE = {"kind": "flow", "shift": 3.0, "spacing": "unipc"}


def get_config() -> ConfigDict:
    """The shapes world with a teacher and students of Wan's kind."""
    config = shapes.get_config()
    config.vae.architecture = "wan_vae"
    # Patches of 2 x 2 pixels, then frames, rows and columns are halved: 5 x 8 x 8 latents of 4 channels.
    config.vae.network = ConfigDict(
        {
            "base_dim": 16,
            "z_dim": 4,
            "dim_mult": (1, 2),
            "temporal_downsample": (True,),
            "num_res_blocks": 1,
            "patch_size": 2,
            "encode_chunk": None,
            "decode_chunk": None,
        }
    )
    config.vae.iterations = 2500
    config.vae.per_channel = True
    config.text.architecture = "umt5"
    config.teacher.architecture = "wan_dit"
    config.teacher.iterations = 5400  # after 3600, one video in seven has another shape than its caption
    config.teacher.network = ConfigDict(
        {
            "num_attention_heads": 4,
            "attention_head_dim": 32,
            "text_dim": 32,
            "freq_dim": 128,
            "ffn_dim": 512,
            "num_layers": 4,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": (5, 2, 2),
            "text_length": config.text.length,
        }
    )
    config.teacher.prediction_type = "flow"
    config.teacher.schedule = ConfigDict(SCHEDULE)
    config.teacher.sampler = "unipc"
    config.generator.times = make_schedule(**SCHEDULE).spaced(4)
    return config
