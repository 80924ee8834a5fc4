"""The fields of a config: type, range and meaning of each; the page docs/reference/config.md is made of them.

`SCHEMA` is a JSON schema, `description` the meaning. Fields that a fork adds are not checked.
"""

from typing import Any, get_args

from dollar_jax import unipc
from dollar_jax.diffusion import PredictionType
from dollar_jax.models.attention import KERNELS
from dollar_jax.models.stack import REMAT
from dollar_jax.sampling import Sampler

Node = dict[str, Any]


def _fields(description: str, **properties: Node) -> Node:
    return {"type": "object", "description": description, "properties": properties}


def _free(description: str, **rules) -> Node:
    """A dictionary whose names are not known here."""
    return {"type": "object", "description": description, **rules}


def _one(kind: str):
    def make(description: str, **rules) -> Node:
        return {"type": kind, "description": description, **rules}

    return make


_text, _flag, _integer, _number, _list = map(_one, ("string", "boolean", "integer", "number", "array"))


def _count(description: str) -> Node:
    return _integer(description, minimum=0)


def _size(description: str) -> Node:
    return _integer(description, minimum=1)


def _positive(description: str) -> Node:
    return _number(description, exclusiveMinimum=0)


def _nonnegative(description: str) -> Node:
    return _number(description, minimum=0)


def _share(description: str) -> Node:
    return _number(description, minimum=0, maximum=1)


def _decay(description: str) -> Node:
    return _number(description, minimum=0, exclusiveMaximum=1)


def _choice(description: str, *values: str) -> Node:
    return {"enum": list(values), "description": description}


OPTIMIZER = _fields(
    "AdamW, whose rate warms up linearly, is constant, and decays to zero by a cosine.",
    learning_rate=_positive("The constant rate."),
    warmup=_count("Number of updates in which the rate rises from 0."),
    decay_from=_share("Share of the iterations at which the decay begins: 0 at once, 1 no decay."),
    clip=_positive("Largest global norm of a gradient; a larger gradient is scaled down to it."),
    b1=_decay("Decay of Adam's first moment."),
    b2=_decay("Decay of Adam's second moment."),
    weight_decay=_nonnegative("Decoupled weight decay, times the rate."),
    moment=_choice("Dtype of Adam's first moment. The second is float32.", "float32", "bfloat16"),
)
STAGE = {
    "iterations": _count("Number of updates."),
    "batch_size": _size("Number of examples in an update, over all devices."),
    "accumulate": _size("Number of pieces in which a batch is computed, one after the other; more need less memory."),
    "save_every": _size("Updates between checkpoints."),
    "keep": _size("Number of newest checkpoints that are kept."),
    "best": _text("A metric: the checkpoint with its largest value is kept too, with a minus in front the smallest."),
    "log_every": _size("Updates between lines of the log."),
    "show_every": _count("Updates between sampled videos in the log; 0: none."),
    "ema": _decay("Decay of the average of the parameters, which is what a later stage takes."),
    "optimizer": OPTIMIZER,
}
_OBJECTIVE = {
    "type": "object",
    "required": ["weight"],
    "properties": {
        "weight": {"type": "number"},
        "own": {
            "type": "object",
            "properties": {
                "updates": {"type": "integer", "minimum": 1},
                "ema": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
                "optimizer": OPTIMIZER,
            },
        },
    },
}
_SOLVER = _choice("Solver of the sampling.", *get_args(Sampler), *unipc.ORDER)
_STEPS = _size("Number of steps.")
_NETWORK = "Sizes of the network: the arguments of the architecture's `build`."

SCHEMA = _fields(
    "A run.",
    seed=_integer("Seed of every random draw.", minimum=0, maximum=2**31 - 2),
    stages=_list(
        "What the run does, in this order: functions of `dollar_jax.stages`, or `module:function`.",
        items={"type": "string"},
        minItems=1,
    ),
    dtype=_choice("Dtype of computation in networks; trained parameters are float32.", "float32", "bfloat16"),
    remat=_choice("Which activations a block keeps for its gradient; the others are computed again.", *REMAT),
    attention=_choice("Kernel of attention; '' takes the one for the backend.", "", *KERNELS),
    offload=_flag("Whether the average and Adam's moments are kept in the host's memory."),
    show_captions=_list("Captions of the videos in the log.", items={"type": "string"}, minItems=1),
    mesh=_fields(
        "How devices are arranged; one size may be -1, which takes all remaining devices.",
        data=_integer("Number of groups among which a batch is split; each has a copy of the parameters."),
        fsdp=_integer("Number of devices in a group among which batch and parameters are split."),
        context=_integer("Number of devices among which the tokens of a video are split."),
    ),
    video=_fields(
        "Size of the videos.",
        frames=_size("Number of frames."),
        height=_size("Height in pixels."),
        width=_size("Width in pixels."),
        fps=_positive("Frames a second."),
        independent_chunk=_count("Number of frames that the VAE sees at once; 0: all."),
    ),
    data=_fields(
        "What is trained on. Without `path` and `prompts`, clips of a world are rendered.",
        path=_text("Folder of a dataset, written by `python -m dollar_jax.data`."),
        prompts=_text("File of prompts, for a run without videos."),
        held_out=_share(
            "Share of the dataset's files that training never reads, chosen by a hash of their names. `held_out/*` in"
            " the log, the guard and the report measure by these."
        ),
        held_out_files=_list("Names of files, as in captions.jsonl, that are held out too.", items={"type": "string"}),
        encode_batch_size=_size(
            "Videos that each device encodes at a time; devices that share the tokens of a video count as one."
        ),
        clips=_size("Number of rendered clips."),
        world=_choice("The rendered world.", "shapes", "pairs"),
        long_captions=_flag("Whether captions of the world of shapes also name the background."),
    ),
    vae=_fields(
        "Training of the VAE, by the stage `vae`.",
        **STAGE,
        architecture=_text("Network, a module of `dollar_jax.models` or `module:function`."),
        network=_free(_NETWORK),
        kl=_nonnegative("Weight of the KL divergence from a standard normal."),
        per_channel=_flag("Whether each channel of the latents is normalised by itself; else all by one scale."),
    ),
    text=_fields(
        "The text encoder of a teacher that is trained here: it stays as it is drawn.",
        architecture=_text("Network, a module of `dollar_jax.models` or `module:function`."),
        network=_free(_NETWORK),
        length=_size("Number of tokens of a caption; shorter ones are padded, longer ones are cut."),
    ),
    teacher=_fields(
        "The teacher: a folder, or its training by the stage `teacher`.",
        path=_text("Folder of a teacher; '' is the one that the run trains."),
        public=_text("Public model for which `python -m dollar_jax.plan` plans when there is no path."),
        **STAGE,
        architecture=_text("Network, a module of `dollar_jax.models` or `module:function`."),
        network=_free(_NETWORK),
        prediction_type=_choice("What the network predicts; `conjugate` is the paper's.", *get_args(PredictionType)),
        schedule=_free("Noise schedule; the fields are those of a card."),
        steps=_size("Number of sampling steps."),
        sampler=_SOLVER,
        guidance=_nonnegative("The paper's w in sampling: 0 is no guidance, diffusers' scale is w + 1."),
        negative_prompt=_text("The caption that guidance moves away from."),
        caption_dropout=_share("Share of captions that are replaced by the empty one, which guidance needs."),
    ),
    lora=_fields(
        "Adapters that are trained in place of all weights of student and fake score.",
        rank=_count("Rank of the student's adapter; 0: all weights are trained."),
        fake_score_rank=_count("Rank of the fake score's adapter; 0: that of the student."),
        alpha=_number("An adapter is scaled by alpha / rank; 0: by 1."),
        targets=_list("Patterns of the layers that get an adapter.", items={"type": "string"}),
    ),
    generator=_fields(
        "Training of a student by the stage `distill`, and how the student samples.",
        **STAGE,
        objectives=_free(
            "Losses by import path, each with `weight`, options, and `own` for a network of its own.",
            additionalProperties=_OBJECTIVE,
        ),
        times=_list(
            "The student's times, one for each step: points of its schedule.",
            items={"type": "number"},
            minItems=1,
            uniqueItems=True,
        ),
        schedule=_free("Fields in which the student's schedule differs from the teacher's."),
        sampler=_choice("Solver of the student.", *get_args(Sampler)),
        guidance=_nonnegative("The paper's w in sampling the student; each step then takes two calls."),
        rollout=_choice(
            "Input of the student in training: noised videos of the data, or its own samples (backward simulation).",
            "data",
            "simulate",
        ),
        shared_time=_flag("Whether all examples of a batch, or of its pieces, are generated at one time."),
        matched_times=_choice(
            "Noise levels at which samples are compared with data: all, from the student's next time to its own"
            " (`segment`), or so from the state that the sampler visits (`trajectory`).",
            "all",
            "segment",
            "trajectory",
        ),
        heterogeneous=_flag("Whether the student predicts x0; else what the teacher predicts."),
        flow_map=_flag("Whether the student is told to which time a step leads; for the objective `flow_map`."),
        guard=_fields(
            "Ends the tuning of a student for a reward, and picks its checkpoint.",
            metric=_text("Column of `report.metrics`, with a minus in front if smaller is better; '': no guard."),
            tolerance=_nonnegative("By how much the metric may be worse than its best value, in its own units."),
            patience=_size("Number of checkpoints without a higher reward after which training stops."),
        ),
    ),
    fake_score=_fields(
        "Training of the fake score, which follows the student's samples.",
        updates=_size("Number of updates for each update of the student."),
        updates_per_rollout=_size("Number of these updates that share one simulated chain of the student."),
        optimizer=OPTIMIZER,
    ),
    reward=_fields(
        "The reward, and the latent reward model that learns it.",
        name=_text("Import path: a name of `dollar_jax.rewards`, or `module:function`."),
        options=_free("Keyword arguments of the reward."),
        frames=_count("Number of frames that the reward sees, evenly spaced; 0: all."),
        timeout=_nonnegative("Seconds that a call may take, the first with its compilation; 0: no limit."),
        batch_size=_size(
            "Captions in an iteration; for each, a clip and a sample are scored, without videos two samples."
        ),
        reads_captions=_flag("Whether the latent reward model reads captions; a reward that depends on them needs it."),
        architecture=_text("Latent reward model, a module of `dollar_jax.models` or `module:function`."),
        network=_free("`channels` of the latents; `backbone` 2d averages over frames, 3d convolves over them."),
        optimizer=OPTIMIZER,
        replay=_count("Number of scored videos that are kept; an iteration takes as many of them as are new."),
        pretrain=_count("Updates of the latent reward model before the student's first."),
        concurrent=_flag("Whether the latent reward model goes on learning after that."),
        step=_choice(
            "Whether the latent reward is added to the other losses (Eq. 16) or has its own update (Alg. 1, line 19).",
            "joint",
            "separate",
        ),
    ),
    held_out=_fields(
        "Evaluation of a student before its first update and at every checkpoint, on prompts that stay the same.",
        videos_per_caption=_count("Videos for each of the report's captions; 0: no evaluation, and no guard."),
    ),
    students=_free(
        "The students in order. Each names what it changes in `generator`, `fake_score`, `reward` and `lora`;"
        " `start_from` is the student to start from, '' the teacher.",
    ),
    report=_fields(
        "The report, by the stage `report`.",
        metrics=_free("Metrics by import path, with options.", additionalProperties={"type": "object"}),
        captions=_size("Number of prompts."),
        long_prompts=_flag("Whether prompts of the world of shapes also name the background."),
        videos_per_caption=_size("Videos for each prompt."),
        reference_clips=_size("Number of real clips that metrics compare with."),
        fewer_steps=_list(
            "Numbers of steps at which the first student is sampled too.", items={"type": "integer", "minimum": 1}
        ),
        fewer_steps_of_all=_flag("Whether every student is sampled at these numbers of steps."),
        teacher_samplers=_list(
            "More rows of the teacher: pairs of a solver and a number of steps, `('ancestral', 50)`.",
            items={"type": "array", "prefixItems": [_SOLVER, _STEPS], "minItems": 2, "maxItems": 2},
        ),
        teacher_guidance=_list("More rows of the teacher: its guidance w.", items={"type": "number", "minimum": 0}),
        clips=_size("Number of prompts whose videos are on the page."),
        batch_size=_size("Videos sampled at a time, rounded up to a multiple of the devices that share a batch."),
        repeats=_size("Repeats of each timing, if they fit into a minute."),
    ),
)
