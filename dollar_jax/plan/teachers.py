"""The card of the teacher of a config, also before the teacher exists."""

import copy

from ml_collections import ConfigDict

from dollar_jax.checkpoint import Card, read_card
from dollar_jax.convert import families
from dollar_jax.errors import UserError
from dollar_jax.pipeline import at_size


def teacher_card(config: ConfigDict, public: str) -> Card:
    """The card of the teacher, with the length of captions and the latent shape of the config's videos.

    The teacher is the one at `config.teacher.path`, else the one that the config trains, else a public model.

    Args:
      public: name of a public model of a family in `dollar_jax.convert.families`; '' is the config's
        `teacher.public`, else the first.
    Raises:
      UserError: there is no model at the path, the public model is unknown, or the VAE does not take the videos.
    """
    models = families.public_models()
    public = public or config.teacher.get("public") or next(iter(models))
    if config.teacher.path:
        card = read_card(config.teacher.path)
    elif "network" in config.teacher:
        card = _trained(config)
    elif public in models:
        card = copy.deepcopy(models[public])
    else:
        raise UserError(f"--teacher is one of {', '.join(models)}, not {public!r}")
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
