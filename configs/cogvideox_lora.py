"""A 4-step student of the public CogVideoX-2B as a LoRA, on one GPU: 49 frames of 480 x 720 at 8 fps.

    python -m dollar_jax.convert from_torch zai-org/CogVideoX-2b TEACHER
    python -m dollar_jax.main --config=configs/cogvideox_lora.py --workdir=W --config.teacher.path=TEACHER \\
        --config.data.path=DATA --config.reward.options.checkpoint=HPS --config.reward.options.tokenizer=CLIP

Teacher, student and fake score share one frozen copy of the weights. See docs/lora.md.
"""

from ml_collections import ConfigDict

from configs import cogvideox_2b
from dollar_jax.config import lora


def get_config() -> ConfigDict:
    """configs/cogvideox_2b.py with adapters on all linear layers of the blocks."""
    config = cogvideox_2b.get_config()
    # Attention and MLP alone are not enough in the shapes world, see docs/lora.md: the others make scales and shifts.
    config.lora = lora(rank=64, targets=("blocks/*",))
    # Five times the rate of full weights for the student, which is 1e-4 as in configs/wan_lora.py.
    config.generator.optimizer.learning_rate = 1e-4
    config.fake_score.optimizer.learning_rate = 1e-4
    config.generator.accumulate = config.generator.batch_size  # one video at a time
    config.reward.batch_size = 2  # so many videos are generated in one call, and twice as many scored
    # The paper's 56 videos in a batch are for eight devices.
    config.students.vsd_cd_lrm.generator.update({"batch_size": 8, "accumulate": 8, "iterations": 40_000})
    return config
