"""The shapes world: trains VAE, teacher and students from scratch on a laptop's CPU, without downloads.

    python -m dollar_jax.main --config=configs/shapes.py --workdir=out/shapes

About 13 minutes on two cores; the result is out/shapes/report/index.html. Expected (3 seeds, docs/evidence.md): 99 % of
the teacher's videos agree with their caption in all attributes, and the 4-step student is at least as close to data as
the teacher.
"""

from ml_collections import ConfigDict

from dollar_jax.config import data, guard, held_out, lora, named, optimizer, reward, stage


def get_config() -> ConfigDict:
    """The default experiment; every field can be changed on the command line."""
    config = ConfigDict()
    config.seed = 0
    config.stages = ("vae", "encode", "teacher", "distill", "report")
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "context": 1})
    config.dtype = "float32"
    config.remat = "dots_with_no_batch_dims_saveable"  # the fastest on CPUs
    config.attention = ""  # the kernel for the backend
    config.offload = False
    config.video = ConfigDict({"frames": 9, "height": 32, "width": 32, "fps": 8, "independent_chunk": 0})
    # `path` names a dataset of `python -m dollar_jax.data`, `prompts` a file of prompts without videos; without both,
    # clips of a world are rendered, `shapes` or `pairs`. Long captions of `shapes` also say whether the background is
    # dark or light.
    config.data = data(clips=8192, world="shapes", long_captions=False, encode_batch_size=32)
    config.show_captions = ("a red ring moving left", "a green square moving up", "a blue cross standing still")

    config.vae = stage(
        iterations=2000,
        batch_size=4,
        architecture="cogvideox_vae",
        network=ConfigDict(
            {
                "block_out_channels": (32,),
                "latent_channels": 4,
                "layers_per_block": 1,
                "norm_num_groups": 16,
                "temporal_compression_ratio": 1,
                "patch_size": (4, 4, 4),
                "exactly_causal": True,
                "encode_chunk": None,
                "decode_chunk": None,
            }
        ),
        kl=1e-4,
        per_channel=False,  # one scale for all latent channels
        ema=0.99,
        optimizer=optimizer(4e-3, warmup=50),
    )
    # A frozen random encoder distinguishes 14 words as well as a trained one.
    config.text = ConfigDict(
        {
            "architecture": "t5",
            "network": ConfigDict({"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 1}),
            "length": 6,
        }
    )
    config.teacher = stage(
        path="",  # your own teacher, in place of training one
        iterations=3600,
        batch_size=32,
        architecture="cogvideox_dit",
        network=ConfigDict(
            {
                "num_attention_heads": 4,
                "attention_head_dim": 32,
                "in_channels": 4,
                "out_channels": 4,
                "time_embed_dim": 128,
                "text_embed_dim": 32,
                "num_layers": 4,
                "sample_width": 8,
                "sample_height": 8,
                "sample_frames": 9,
                "patch_size": 2,
                "patch_size_t": 3,
                "use_rotary_positional_embeddings": True,
            }
        ),
        prediction_type="conjugate",
        schedule=ConfigDict({"kind": "ddpm", "zero_snr": True, "snr_shift": 1.0}),
        steps=50,
        sampler="ddim",
        guidance=0.0,  # guidance reduces the diversity of this world
        negative_prompt="",
        caption_dropout=0.1,
        ema=0.999,
        optimizer=optimizer(1.5e-3),
    )

    config.lora = lora()
    config.generator = stage(
        iterations=300,
        batch_size=16,
        objectives=named(
            variational_score={"weight": 1.0, "guidance": 0.0},
            consistency={"weight": 0.5, "guidance": 0.0, "steps": 5},
            latent_reward={"weight": 0.15, "units": "deviations"},
        ),
        times=(249, 499, 749, 999),
        rollout="simulate",
        shared_time=False,  # whether a batch, or a piece of it with `accumulate`, is generated at one time
        matched_times="segment",  # the paper has "all": see docs/paper.md
        sampler="ddim",
        guidance=0.0,
        heterogeneous=False,
        flow_map=False,
        guard=guard("-frechet", tolerance=5.0),
        ema=0.99,
        optimizer=optimizer(1e-4, b1=0.0, decay_from=0.6),
    )
    config.fake_score = ConfigDict(
        {
            "updates": 2,
            "updates_per_rollout": 1,  # more: so many updates share one simulated chain of the student
            "optimizer": optimizer(2e-4, b1=0.0, decay_from=1.0),
        }
    )
    config.reward = reward(
        "brightness",  # or any Python function, see docs/rewards.md
        channels=4,
        batch_size=8,
        optimizer=optimizer(1e-3, decay_from=1.0),
    )
    config.held_out = held_out(videos_per_caption=2)
    # Each student has its own changes of `generator` and `reward`, and may start from another student.
    config.students = ConfigDict(
        {
            "vsd_cd": {"start_from": "", "generator": {"objectives": {"latent_reward": 0.0}}},
            "vsd_cd_lrm": {"start_from": "vsd_cd", "generator": {"iterations": 60, "save_every": 10}},
        },
        sort_keys=False,
    )
    config.report = ConfigDict(
        {
            "metrics": named(
                alignment={},
                clean_db={},
                frechet={"components": 32},
                detail={"components": 32},
                spread={},
                vendi={},
            ),
            "captions": 60,
            "long_prompts": False,
            "videos_per_caption": 5,
            # The mean grey of few is off: of 1,200 the half whose mean counts had 0.367, and the world has 0.350.
            "reference_clips": 4800,
            "fewer_steps": (2, 1),
            "fewer_steps_of_all": False,  # only of the first student
            "teacher_samplers": (("ancestral", 50),),  # more rows of the teacher
            "teacher_guidance": (),
            "clips": 8,  # number of clips on the page
            "batch_size": 60,
            "repeats": 7,  # repeats of each timing
        }
    )
    return config
