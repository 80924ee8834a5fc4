"""The paper's recipe (Sec. 4.1): a 4-step student of a CogVideoX-2B teacher, 128 frames of 192 x 320 at 12 fps.

    python -m dollar_jax.data --videos=DIR --captions=captions.jsonl --out=DATA --config=configs/dollar.py
    python -m dollar_jax.main --config=configs/dollar.py --workdir=W --config.teacher.path=TEACHER \\
        --config.data.path=DATA --config.reward.options.checkpoint=HPS --config.reward.options.tokenizer=CLIP

TEACHER is a checkpoint of dollar_jax, trained by configs/teacher.py or converted; HPS has the converted weights of
HPSv2 (docs/rewards.md). On machines with more memory than the paper's eight A100 of 80 GB, raise generator.batch_size,
the number of examples over all devices. Without CD a file of prompts is enough, see docs/objectives.md.
"""

from ml_collections import ConfigDict

from dollar_jax.config import data, guard, held_out, lora, named, optimizer, reward, stage


def adamw(learning_rate: float) -> ConfigDict:
    """AdamW with the paper's learning rate.

    The other values are PyTorch's defaults. A short warm-up and clipping keep the first steps of a copied network
    small.
    """
    return optimizer(learning_rate, warmup=20, decay_from=1.0, b2=0.999, weight_decay=0.01, clip=1.0)


def get_config() -> ConfigDict:
    """The hyper-parameters of Sec. 4.1; comments give the reasons for values that are not in the paper."""
    config = ConfigDict()
    config.seed = 0
    config.stages = ("encode", "distill", "report")
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "context": 1})
    config.dtype = "bfloat16"
    config.remat = "nothing_saveable"
    config.attention = ""  # the kernel for the backend
    config.offload = False
    # Each chunk of 16 frames becomes 5 latent frames: 40 for 128 frames.
    config.video = ConfigDict({"frames": 128, "height": 192, "width": 320, "fps": 12, "independent_chunk": 16})
    config.data = data()  # videos, or prompts alone; 5 % of the videos are held out
    config.show_captions = ("A golden retriever runs along a beach at sunset, waves rolling in behind it.",)
    config.teacher = ConfigDict({"path": ""})

    config.lora = lora()
    config.generator = stage(
        iterations=40_000,
        batch_size=8,  # 1 on each of 8 GPUs: 320 thousand videos in the run
        save_every=1000,
        log_every=1,  # an iteration takes tens of seconds, of Wan minutes
        show_every=1000,
        objectives=named(
            # Normalised as in DMD; the paper does not specify it.
            variational_score={"weight": 1.0, "guidance": 3.5, "normalize": True, "low": 0.02, "high": 0.98},
            # The target is the teacher's f in Eq. 6, the average's in LCM. The paper names both MSE and Huber.
            consistency={
                "weight": 0.5,
                "guidance": 7.5,
                "grid": 50,
                "steps": 5,
                "metric": "mse",
                "target": "teacher",
            },
            latent_reward={
                "weight": 1.0,
                "units": "raw",
            },  # a weight of 1 in deviations would be 36 times as much for HPSv2
        ),
        times=(249, 499, 749, 999),
        rollout="simulate",  # as in DMD2, whose protocol Sec. 4.1 follows; Sec. 3.3 can be read as "data"
        matched_times="all",  # "segment" is much better in the shapes world
        sampler="renoise",  # as in DMD2; Eq. 5 as printed is "ancestral"
        guidance=0.0,
        heterogeneous=False,
        flow_map=False,
        shared_time=False,
        # Not in the paper, which selects models "moderately": the best checkpoint that is not far from data.
        guard=guard("-frechet", tolerance=5.0, patience=6),
        ema=0.999,  # not in the paper
        optimizer=adamw(2e-5),
    )
    # Its rate is not in the paper.
    config.fake_score = ConfigDict({"updates": 5, "updates_per_rollout": 1, "optimizer": adamw(2e-5)})
    config.reward = reward(
        "hpsv2",
        options={"checkpoint": "", "tokenizer": "", "dtype": "bfloat16"},
        reads_captions=True,  # the text-image model of Tab. 13
        channels=16,  # the paper's VAE has 12
        batch_size=8,
        step="joint",  # Eq. 16; "separate" is line 19 of Alg. 1
        optimizer=optimizer(1e-4, decay_from=1.0, b2=0.999),  # not in the paper
    )
    config.held_out = held_out(videos_per_caption=2)
    config.students = ConfigDict(
        {
            "vsd_cd": {"start_from": "", "generator": {"objectives": {"latent_reward": 0.0}}},
            # With a reward the paper accumulates 7 steps of one example per GPU; 56 x 5,714 are the same 320 thousand
            # videos.
            "vsd_cd_lrm": {"start_from": "", "generator": {"iterations": 5714, "batch_size": 56, "accumulate": 7}},
        },
        sort_keys=False,
    )
    config.report = ConfigDict(
        {
            "metrics": named(frechet={}, detail={}, vendi={}),
            "captions": 60,
            "videos_per_caption": 5,
            "reference_clips": 256,
            "fewer_steps": (2, 1),
            "fewer_steps_of_all": False,  # only of the first student
            "teacher_samplers": (),  # more rows of the teacher: (("ddim", 250), ("ancestral", 50))
            "clips": 4,
            "batch_size": 4,
            "repeats": 5,
        }
    )
    return config
