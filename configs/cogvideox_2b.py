"""The paper's recipe for the public CogVideoX-2B at its own size: 49 frames of 480 x 720 at 8 fps, or fewer frames.

    python -m dollar_jax.convert from_torch zai-org/CogVideoX-2b TEACHER
    python -m dollar_jax.data --videos=DIR --captions=captions.jsonl --out=DATA --config=configs/cogvideox_2b.py
    python -m dollar_jax.main --config=configs/cogvideox_2b.py --workdir=W --config.teacher.path=TEACHER \\
        --config.data.path=DATA --config.reward.options.checkpoint=HPS --config.reward.options.tokenizer=CLIP

The paper's teacher was trained on 128 frames of 192 x 320, encoded in chunks (configs/dollar.py): that size is new to
the public weights. All else is as there.
"""

from ml_collections import ConfigDict

from configs import dollar


def get_config() -> ConfigDict:
    """The paper's recipe at the size of the public weights."""
    config = dollar.get_config()
    config.video = ConfigDict({"frames": 49, "height": 480, "width": 720, "fps": 8, "independent_chunk": 0})
    return config
