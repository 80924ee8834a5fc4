"""Pieces that config files are made of. A config is a file with get_config() -> ConfigDict; a fork copies one."""

from ml_collections import ConfigDict


def optimizer(learning_rate: float, **changes) -> ConfigDict:
    """Fields of an AdamW, see `dollar_jax.steps.common.make_optimizer`."""
    adam = {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "moment": "float32"}
    return ConfigDict({"learning_rate": learning_rate, "warmup": 20, "decay_from": 0.0, "clip": 1.0, **adam, **changes})


def stage(iterations: int, batch_size: int, **fields) -> ConfigDict:
    """Fields of a trained stage: its length, the batch over all devices and in how many pieces it is computed, and what
    is written when, in iterations. `keep` of the newest checkpoints stay, and the one where the metric `best` was
    largest or, with a minus in front, smallest; `show_every` 0 samples nothing on the way.
    """
    log = {"accumulate": 1, "save_every": 200, "keep": 2, "best": "", "log_every": 20, "show_every": 500}
    return ConfigDict({"iterations": iterations, "batch_size": batch_size, **log, **fields})
