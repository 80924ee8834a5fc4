"""A 4-step student of Wan2.1-T2V-1.3B as a LoRA, on one GPU: 81 frames of 480 x 832; `:quarter` has 240 x 416.

    python -m dollar_jax.convert from_torch Wan-AI/Wan2.1-T2V-1.3B-Diffusers TEACHER
    python -m dollar_jax.main --config=configs/wan_lora.py --workdir=W --config.teacher.path=TEACHER \\
        --config.data.path=DATA --config.reward.options.checkpoint=HPS --config.reward.options.tokenizer=CLIP

Teacher, student and fake score share one frozen copy of the weights. The 14B needs another teacher only. On 8 devices
set generator.batch_size=64, students.vsd_cd_lrm.generator.batch_size=64 and reward.batch_size=8. See docs/lora.md.
"""

from ml_collections import ConfigDict

from configs import wan
from dollar_jax.config import lora


def get_config(size: str = "") -> ConfigDict:
    """configs/wan.py with adapters; comments give sources, whose names are those of configs/wan.py.

    Args:
      size: quarter for a quarter of the tokens.
    """
    config = wan.get_config(size)
    config.lora = lora(rank=64)  # LightX2V: rank and alpha 64; attention and MLP
    config.generator.optimizer.learning_rate = 1e-4  # LightX2V
    config.fake_score.optimizer.learning_rate = 2e-5  # LightX2V
    # One video at a time, eight in a batch: full weights have 64 (see configs/wan.py), on eight times the devices.
    small = {"batch_size": 8, "accumulate": 8}
    config.generator.update(small)
    config.students.vsd_cd_lrm.generator.update(small)
    config.reward.batch_size = 2  # so many videos are generated in one call, and twice as many scored
    config.report.batch_size = 1
    return config
