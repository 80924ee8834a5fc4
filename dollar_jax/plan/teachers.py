"""The card of the teacher that a config will distil, before there is one."""

from ml_collections import ConfigDict

from dollar_jax.checkpoint import Card, read_card
from dollar_jax.errors import UserError
from dollar_jax.pipeline import at_size

# What differs from the defaults of `cogvideox_dit.Config` in the public CogVideoX folders.
_LARGE = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
PUBLIC = {
    "2b": {},
    "5b": _LARGE,
    "1.5-5b": {**_LARGE, "patch_size_t": 2, "patch_bias": False, "sample_height": 300, "sample_width": 300},
}
T5_XXL = {"d_model": 4096, "num_layers": 24, "d_ff": 10240, "num_heads": 64}
LENGTH = 226  # tokens of a caption
PUBLIC_SCHEDULE = {"kind": "ddpm", "betas": "scaled_linear", "zero_snr": True, "snr_shift": 3.0}


def teacher_card(config: ConfigDict, public: str) -> Card:
    """The card of the teacher at `config.teacher.path`; of the one that the config trains; of the public CogVideoX of
    size `public`. With the latent shape of the config's videos, and with the captions' size.

    Raises:
      UserError: no model there, no such size, or a VAE that cannot take the videos.
    """
    if config.teacher.path:
        card = read_card(config.teacher.path)
    elif "network" in config.teacher:
        card = _trained(config)
    elif public in PUBLIC:
        card = {
            "transformer": {"architecture": "cogvideox_dit", "config": PUBLIC[public]},
            "vae": {"architecture": "cogvideox_vae", "config": {}, "scaling_factor": 1.0},
            "text_encoder": {"architecture": "t5", "config": T5_XXL},
            "tokenizer": {"length": LENGTH},
            "prediction_type": "v",
            "schedule": PUBLIC_SCHEDULE,
        }
    else:
        raise UserError(f"--teacher is one of {', '.join(PUBLIC)}, not {public!r}")
    return at_size(card, config.video.to_dict())


def _trained(config: ConfigDict) -> Card:
    teacher = config.teacher
    return {
        "transformer": {"architecture": teacher.architecture, "config": teacher.network.to_dict()},
        "vae": {
            "architecture": config.vae.architecture,
            "config": config.vae.network.to_dict(),
            "scaling_factor": 1.0,
        },
        "text_encoder": {"architecture": config.text.architecture, "config": config.text.network.to_dict()},
        "tokenizer": {"length": config.text.length},
        "prediction_type": teacher.prediction_type,
        "schedule": teacher.schedule.to_dict(),
    }
