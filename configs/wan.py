"""A 4-step student of Wan2.1-T2V-1.3B: 81 frames of 480 x 832 at 16 fps; `configs/wan.py:quarter` has 240 x 416.

    python -m dollar_jax.convert from_torch Wan-AI/Wan2.1-T2V-1.3B-Diffusers TEACHER
    python -m dollar_jax.data --videos=DIR --captions=captions.jsonl --out=DATA --config=configs/wan.py
    python -m dollar_jax.main --config=configs/wan.py --workdir=W --config.teacher.path=TEACHER \\
        --config.data.path=DATA --config.reward.options.checkpoint=HPS --config.reward.options.tokenizer=CLIP

The 14B and the 5B need another teacher and, the 5B, another size of videos. The hyper-parameters come from recipes
that are known to work at this size, all for VSD without CD:

    SF          github.com/guandeh17/Self-Forcing, configs/self_forcing_dmd.yaml
    LightX2V    github.com/ModelTC/lightx2v, train configs wan2_1_t2v_1_3b_dmd.yaml
    FastGen     github.com/NVlabs/FastGen, WanT2V/config_dmd2.py
    rCM         github.com/NVlabs/rcm, wan2pt1_t2v.py and arXiv 2510.08431

An official guidance scale g is w = g - 1 here, or w = g where the formula is c + g (c - null); official iterations
often count updates of both networks.
"""

from ml_collections import ConfigDict

from configs import dollar
from dollar_jax.config import optimizer
from dollar_jax.diffusion import flow_schedule, shifted

# Shift 5: SF, FastGen, LightX2V. `stretched` are the times that diffusers' Euler can be made to follow, so that stock
# WanPipeline samples the student: .625, .833, .9373 and 1. For a deterministic student: sampler=ddim, spacing=unipc.
SCHEDULE = {"shift": 5.0, "spacing": "stretched"}


def adamw(learning_rate: float) -> ConfigDict:
    """Betas, decay and clipping of SF, LightX2V and rCM (which does not clip)."""
    return optimizer(learning_rate, warmup=20, decay_from=1.0, b1=0.0, b2=0.999, weight_decay=0.01, clip=10.0)


def get_config(size: str = "") -> ConfigDict:
    """VSD and CD in the paper's frame with hyper-parameters for Wan; comments give their sources.

    Args:
      size: quarter for a quarter of the tokens: 8,190 instead of 32,760.
    """
    config = dollar.get_config()
    height, width = {"": (480, 832), "quarter": (240, 416)}[size]
    config.video = ConfigDict({"frames": 81, "height": height, "width": width, "fps": 16, "independent_chunk": 0})
    config.teacher = ConfigDict({"path": "", "public": "wan2.1-1.3b"})  # `public` is for plans without a path
    generator = config.generator
    generator.schedule = ConfigDict(SCHEDULE)
    generator.times = flow_schedule(**SCHEDULE).spaced(4)
    generator.sampler = "renoise"  # SF, rCM; FastGen and LightX2V have ddim
    generator.iterations = 1000  # LightX2V; SF 120, FastGen 1,200; look at the samples every 100
    generator.batch_size = 64  # SF; FastGen and rCM too
    generator.save_every = generator.show_every = 100
    generator.ema = 0.99  # SF
    generator.optimizer = adamw(2e-6)  # SF, LightX2V, rCM; FastGen 1e-5
    # SF, LightX2V; rCM 4 updates
    config.fake_score = ConfigDict({"updates": 5, "updates_per_rollout": 1, "optimizer": adamw(4e-7)})
    score, consistency = (generator.objectives[name] for name in ("variational_score", "consistency"))
    score.guidance = 3.0  # SF; LightX2V 2, FastGen and rCM 4
    # SF, LightX2V: noise levels .02 to .98 after the shift; rCM has no bounds.
    score.low, score.high = (shifted(level, 1 / SCHEDULE["shift"]) for level in (0.02, 0.98))
    # CD is of the paper; rCM balances another form of it. Wan's own guidance scale is 5.
    consistency.guidance = 4.0
    # As in configs/dollar.py, 7 pieces of a batch of 56 (64 is not divisible by 7: 8 pieces).
    tuned = config.students.vsd_cd_lrm.generator
    tuned.iterations, tuned.batch_size, tuned.accumulate = 1000, 64, 8
    # A video is 0.4 GB of pixels in float32 here, and one of the teacher takes 100 calls: the report is of 40.
    config.report.update({"captions": 20, "videos_per_caption": 2, "reference_clips": 80})
    return config
