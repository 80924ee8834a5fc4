"""Pretrains a teacher with the sizes of CogVideoX-2B on your own videos; configs/dollar.py distils it.

    python -m dollar_jax.main --config=configs/teacher.py --workdir=W --config.data.path=DATA
    python -m dollar_jax.main --config=configs/dollar.py --workdir=W2 --config.teacher.path=W/teacher \\
        --config.data.path=DATA

DATA is a dataset of `python -m dollar_jax.data`. The VAE is trained first. The text encoder is random: it distinguishes
words, but knows nothing about their meaning.
"""

from ml_collections import ConfigDict

from configs.dollar import get_config as dollar_config
from dollar_jax.config import optimizer, stage


def get_config() -> ConfigDict:
    """The conjugate velocity of Eq. 4 at the paper's size of videos, with the schedule of the public CogVideoX."""
    config = dollar_config()
    config.stages = ("vae", "encode", "teacher")
    config.vae = stage(
        iterations=100_000,
        batch_size=8,
        architecture="cogvideox_vae",
        network=ConfigDict({"block_out_channels": (128, 256, 256, 512), "latent_channels": 16, "layers_per_block": 3}),
        kl=1e-6,
        per_channel=False,
        ema=0.999,
        optimizer=optimizer(1e-4),
    )
    config.text = ConfigDict(
        {
            "architecture": "t5",
            "network": ConfigDict({"d_model": 256, "d_kv": 64, "d_ff": 512, "num_heads": 4, "num_layers": 1}),
            "length": 226,
        }
    )
    config.teacher = stage(
        path="",
        iterations=200_000,
        batch_size=64,
        architecture="cogvideox_dit",
        network=ConfigDict(
            {
                "num_attention_heads": 30,
                "attention_head_dim": 64,
                "num_layers": 30,
                "in_channels": 16,
                "out_channels": 16,
                "time_embed_dim": 512,
                "text_embed_dim": 256,
                "max_text_seq_length": 226,
                "patch_size": 2,
                "sample_height": 24,
                "sample_width": 40,
                "sample_frames": 157,  # 40 latent frames
            }
        ),
        prediction_type="conjugate",
        schedule=ConfigDict({"kind": "ddpm", "betas": "scaled_linear", "zero_snr": True, "snr_shift": 3.0}),
        steps=50,
        sampler="ddim",
        guidance=7.5,
        negative_prompt="",
        caption_dropout=0.1,
        ema=0.9999,
        optimizer=optimizer(1e-4, warmup=1000, b2=0.999, decay_from=0.9),
    )
    return config
