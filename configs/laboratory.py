"""The paper's tables in the shapes world: each experiment changes configs/shapes.py and names its students.

    python -m dollar_jax.laboratory --experiment=objectives --out=out/laboratory --seeds=0,1,2

Students start from the teacher, and students that are tuned for a reward from the student `vsd_cd`. Both belong to the
run of the same seed that `PARENTS` names. Results: docs/evidence.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import pairs, shapes, shapes_wan
from dollar_jax.config import optimizer
from dollar_jax.data.shapes import LONG_CAPTIONS

WEIGHTS = {"variational_score": 0.0, "consistency": 0.0, "latent_reward": 0.0}


def get_config(experiment: str = "base") -> ConfigDict:
    """The config of one experiment; `EXPERIMENTS` has their names."""
    config = WORLDS.get(experiment, shapes).get_config()
    config.stages = ("distill", "report")
    config.report.update({"fewer_steps": (), "teacher_samplers": (), "repeats": 3})
    config.held_out.videos_per_caption = 0
    config.students = ConfigDict(sort_keys=False)
    EXPERIMENTS[experiment](config)
    if config.data.world == "shapes":
        config.report.videos_per_caption = 20  # the mean grey of fewer videos is less certain than models differ in it
    return config


def _student(start_from: str = "", reward: dict | None = None, **generator) -> ConfigDict:
    fields = {"start_from": start_from, "generator": generator, "reward": reward or {}}
    return ConfigDict(fields, convert_dict=True)


def _weights(**weights: float) -> dict:
    return WEIGHTS | weights


BOTH = _weights(variational_score=1.0, consistency=0.5)
TUNED = {"iterations": 60, "save_every": 10, "objectives": BOTH | {"latent_reward": 0.15}}


def _base(config: ConfigDict) -> None:
    """The networks from which the other experiments start."""
    config.stages = ("vae", "encode", "teacher", "distill")
    config.students.vsd_cd = _student(objectives=BOTH)


def _objectives(config: ConfigDict) -> None:
    """Tab. 3: combinations of objectives. The student tuned for a reward is guarded, as in configs/shapes.py."""
    config.held_out.videos_per_caption = 2
    config.report.teacher_samplers = (("ddim", 250), ("ancestral", 50), ("ancestral", 250))
    config.report.update({"fewer_steps": (2, 1), "fewer_steps_of_all": True})
    config.students.vsd = _student(objectives=_weights(variational_score=1.0))
    config.students.cd = _student(objectives=_weights(consistency=0.5))
    config.students.vsd_cd = _student("parent/vsd_cd", iterations=0, objectives=BOTH)
    config.students.vsd_cd_lrm = _student("parent/vsd_cd", **TUNED)


def _prompts_alone(config: ConfigDict) -> None:
    """VSD from the 60 captions without videos, to compare with the student `vsd` of `objectives`."""
    config.stages = ("encode", "distill", "report")
    config.data.prompts = str(Path(__file__).with_name("shapes_prompts.txt"))
    config.held_out.videos_per_caption = 2
    config.students.vsd = _student(objectives=_weights(variational_score=1.0))


def _wan(config: ConfigDict) -> None:
    """The run of configs/shapes_wan.py, to compare with that of configs/shapes.py: all networks are of Wan's kind."""
    for part, fields in shapes_wan.get_config().items():
        config[part] = fields


def _lora(config: ConfigDict) -> None:
    """Adapters in place of full weights, for as many updates: ranks, learning rates, a weaker fake score, a reward."""
    config.held_out.videos_per_caption = 2
    config.students.full = _student("parent/vsd_cd", iterations=0, objectives=BOTH)
    config.students.full_lrm = _student("parent/vsd_cd", **TUNED)
    for name, adapter in ADAPTERS.items():
        config.students[name] = _adapted(config, _student(objectives=BOTH), *adapter)
    config.students.rank_16_lrm = _adapted(config, _student("rank_16", **TUNED), *ADAPTERS["rank_16"])


def _lora_layers(config: ConfigDict) -> None:
    """Adapters on all layers of the blocks: also on those that turn the time into scales and shifts."""
    for rank in (16, 64):
        student = _adapted(config, _student(objectives=BOTH), rank, 10)
        student.lora.targets = ("blocks/*",)
        config.students[f"rank_{rank}_blocks"] = student


def _adapted(config: ConfigDict, student: ConfigDict, rank: int, times: float, fake_rank: int = 0) -> ConfigDict:
    """The student with adapters in place of full weights, at `times` the learning rates of the config."""
    rates = {part: times * config[part].optimizer.learning_rate for part in ("generator", "fake_score")}
    student.generator.optimizer = {"learning_rate": rates["generator"]}
    student.fake_score = ConfigDict({"optimizer": {"learning_rate": rates["fake_score"]}})
    student.lora = ConfigDict({"rank": rank, "fake_score_rank": fake_rank})
    return student


def _extracted(config: ConfigDict) -> None:
    """The student `vsd_cd` as an adapter of its teacher: what is left of it at each rank, see docs/lora.md."""
    config.stages = ("report",)
    for rank in EXTRACTED:
        config.students[f"rank_{rank}"] = _student(f"rank_{rank}", iterations=0, objectives=BOTH)


def _ablations(config: ConfigDict) -> None:
    """Tab. 6, 7, 8 and choices that the paper leaves open: one change each to the student of configs/shapes.py."""
    config.students.default = _student("parent/vsd_cd", iterations=0, objectives=BOTH)
    for name, change in CHANGES.items():
        config.students[name] = _student(**change | {"objectives": BOTH | change.get("objectives", {})})


def _ablations_vsd(config: ConfigDict) -> None:
    """The changes of `_ablations` that are not of CD, to a student of VSD alone."""
    vsd = _weights(variational_score=1.0)
    config.students.default = _student(objectives=vsd)
    for name, change in CHANGES.items():
        if "consistency" not in (objectives := change.get("objectives", {})):
            config.students[name] = _student(**change | {"objectives": vsd | objectives})


def _savings(config: ConfigDict) -> None:
    """Less arithmetic an iteration: one time for all examples of an update, one chain for several of the fake score."""
    config.students.default = _student("parent/vsd_cd", iterations=0, objectives=BOTH)
    for name, (updates, updates_per_rollout, shared_time) in SAVINGS.items():
        student = _student(objectives=BOTH, shared_time=shared_time)
        student.fake_score = ConfigDict({"updates": updates, "updates_per_rollout": updates_per_rollout})
        config.students[name] = student


def _frontier(config: ConfigDict) -> None:
    """Objectives that came after the paper, alone and beside VSD and CD, for as many updates."""
    for name, (objectives, changes) in _beside_vsd_cd(config).items():
        config.students[name] = _student(objectives=WEIGHTS | objectives, **changes)
    forced = BOTH | {"variational_score": {"weight": 1.0, "data_share": 0.5}}
    config.students.data_forcing = _student("vsd_cd", iterations=60, objectives=forced)


def _frontier_more(config: ConfigDict) -> None:
    """Recipes of `frontier` for as much arithmetic as 300 updates of VSD + CD, pairs of them, faster discriminators."""
    known = _beside_vsd_cd(config)
    for name, iterations in EQUAL_ARITHMETIC.items():
        objectives, changes = known[name]
        config.students[name] = _student(objectives=WEIGHTS | objectives, iterations=iterations, **changes)
    for name in ("vsd_rcm", "vsd_flow_map"):
        objectives, changes = known[name]
        config.students[name.replace("vsd", "vsd_cd")] = _student(objectives=objectives | BOTH, **changes)
    fast = {"optimizer": optimizer(2e-3, b1=0.0), "updates": 5}
    for name, weight in {"vsd_cd_adversarial": 0.03, "vsd_cd_adversarial_x10": 0.3}.items():
        config.students[name] = _student(objectives=BOTH | {"adversarial": {"weight": weight, "own": fast}})


def _frontier_long(config: ConfigDict) -> None:
    """VSD + CD for 4 steps and for 1 with four times the updates of `frontier`, measured every 100."""
    config.held_out.videos_per_caption = 2
    known = _beside_vsd_cd(config) | {"vsd_cd": (BOTH, {})}
    config.generator.update({"iterations": 4 * config.generator.iterations, "save_every": 100})
    for name in ("vsd_cd", "vsd_cd_1_step"):
        objectives, changes = known[name]
        config.students[f"{name}_long"] = _student(objectives=objectives, **changes)


def _beside_vsd_cd(config: ConfigDict) -> dict[str, tuple[dict, dict]]:
    """Adds `vsd_cd` to compare with, samples each student with 8, 2 and 1 steps too; returns the teacher's recipes."""
    config.report.update({"fewer_steps": (8, 2, 1), "fewer_steps_of_all": True})
    config.students.vsd_cd = _student("parent/vsd_cd", iterations=0, objectives=BOTH)
    return recipes(config.generator.objectives.variational_score.guidance)


def _pairs(config: ConfigDict) -> None:
    """The networks from which `pairs_frontier` starts, in the world of pairs."""
    _base(config)


def _pairs_frontier(config: ConfigDict) -> None:
    """`frontier` in the world of pairs, whose teacher needs guidance; also students without it, or by its own term."""
    _frontier(config)


def _pairs_best(config: ConfigDict) -> None:
    """The best recipes of `pairs_frontier` on seed 0, for more seeds."""
    _frontier(config)
    for name in set(config.students) - set(PAIRS_BEST):
        del config.students[name]


def _long_prompts(config: ConfigDict) -> None:
    """Tab. 9, L: captions of data and prompts also name the background."""
    config.stages = ("vae", "encode", "teacher", "distill", "report")
    config.data.long_captions = config.report.long_prompts = True
    config.text.length = 10
    config.show_captions = LONG_CAPTIONS[:3]
    config.students.vsd = _student(objectives=_weights(variational_score=1.0))
    config.students.vsd_cd = _student(objectives=BOTH)
    config.held_out.videos_per_caption = 2  # for the guard
    config.students.vsd_cd_lrm = _student("vsd_cd", **TUNED)
    config.students.vsd_1_step = _student(objectives=_weights(variational_score=1.0), times=(999,))


def _short_prompts(config: ConfigDict) -> None:
    """Tab. 9, S: the same models, with prompts that do not name the background."""
    _long_prompts(config)
    config.stages = ("distill", "report")
    config.report.long_prompts = False
    for name, student in config.students.items():
        student.start_from = f"parent/{name}"
        student.generator.iterations = 0


def _tuning(config: ConfigDict, methods: dict[str, tuple[int, dict, dict]]) -> None:
    """Tunes `vsd_cd` with each method for about the same time, beside VSD and CD, which cost all methods the same."""
    config.generator.optimizer.update({"decay_from": 1.0, "warmup": 5})
    config.generator.update({"save_every": 10, "guard": {"metric": ""}})
    config.held_out.videos_per_caption = 2
    config.students.start = _student("parent/vsd_cd", iterations=0, objectives=BOTH)
    for name, (iterations, objectives, changes) in methods.items():
        objectives = BOTH | objectives
        config.students[name] = _student("parent/vsd_cd", iterations=iterations, objectives=objectives, **changes)


def _rewards_step(config: ConfigDict) -> None:
    """Tab. 5 with a reward without a gradient, the median grey of 8-bit pixels."""
    config.reward.name = "brightness"
    _tuning(config, STEPWISE | POLICIES)


def _rewards_smooth(config: ConfigDict) -> None:
    """Tab. 5 with a differentiable reward, the mean grey of the border."""
    config.reward.name = "dollar_jax.rewards.shapes_world:BorderBrightness"
    _tuning(config, STEPWISE | GRADIENTS)


def _rewards_from_teacher(config: ConfigDict) -> None:
    """Tab. 5, 14 and Fig. 8 as printed: VSD and a reward from the teacher on, without CD and without a guard."""
    config.held_out.videos_per_caption = 2
    config.generator.update({"save_every": 50, "guard": {"metric": ""}})
    for name, reward in {"vsd": {}, "vsd_lrm": {"latent_reward": 0.15}, "vsd_ddpo": {"policy_gradient": 1.0}}.items():
        config.students[name] = _student(objectives=_weights(variational_score=1.0) | reward)


def _overoptimisation(config: ConfigDict) -> None:
    """Fig. 9: over-optimisation by a large weight over many updates, without a guard and with one on the alignment."""
    config.held_out.videos_per_caption = 2
    config.generator.optimizer.update({"decay_from": 1.0, "warmup": 5})
    config.students.start = _student("parent/vsd_cd", iterations=0, objectives=BOTH)
    too_much = {"iterations": 120, "save_every": 20, "objectives": BOTH | {"latent_reward": 1.0}}
    guard = {"metric": "alignment", "tolerance": 0.05, "patience": 2}
    config.students.unguarded = _student("parent/vsd_cd", guard={"metric": ""}, **too_much)
    config.students.guarded = _student("parent/vsd_cd", guard=guard, **too_much)


def _reward_models(config: ConfigDict) -> None:
    """Fig. 10, 11: latent reward models of the four kinds of Tab. 11 are trained on a fixed student."""
    world = "dollar_jax.rewards.shapes_world"
    kinds = {
        "image": ("dollar_jax.rewards.jpeg:jpeg_compressibility", False, "2d"),
        "text_image": (f"{world}:CaptionArea", True, "2d"),
        "video": ("dollar_jax.rewards.motion:dynamic_degree", False, "3d"),
        "text_video": (f"{world}:caption_speed", True, "3d"),
    }
    config.stages = ("distill",)
    config.held_out.videos_per_caption = 2
    config.generator.guard.metric = ""
    for kind, (name, reads_captions, backbone) in kinds.items():
        reward = {"name": name, "reads_captions": reads_captions, "network": {"backbone": backbone}}
        reward |= {"pretrain": 400, "replay": 256}
        config.students[kind] = _student("parent/vsd_cd", reward, iterations=0, save_every=50)


def _collapse(config: ConfigDict) -> None:
    """What curves and alarms of the log look like when a run is well, and when it is not: see docs/objectives.md."""
    config.held_out.videos_per_caption = 2
    config.report.repeats = 1
    vsd = {"objectives": _weights(variational_score=1.0), "save_every": 25}
    guided = {"variational_score": {"guidance": 7.5}}
    config.students.healthy = _student(**vsd)
    config.students.over_guided = _student(**vsd | {"objectives": vsd["objectives"] | guided})
    # A hundredth of the learning rate.
    config.students.fake_score_behind = _student(**vsd)
    config.students.fake_score_behind.fake_score = ConfigDict({"optimizer": {"learning_rate": 2e-6}})
    # A hundred times the learning rate.
    config.students.too_high = _student(iterations=150, optimizer={"learning_rate": 1e-2}, **vsd)


# Rank of the student's adapter, learning rates in multiples of those of full weights, rank of the fake score's.
ADAPTERS = {
    "rank_4": (4, 10),
    "rank_16": (16, 10),
    "rank_64": (64, 10),
    "rank_16_x3": (16, 3),
    "rank_16_x30": (16, 30),
    "rank_16_fake_4": (16, 10, 4),
}

EXTRACTED = (1, 4, 16, 64)  # ranks that `convert extract_lora` is asked for

CHANGES = {
    "steps_1": {"times": (999,)},
    "steps_2": {"times": (499, 999)},
    "m_1": {"objectives": {"consistency": {"steps": 1}}},  # the teacher's steps between the two times of CD
    "heterogeneous": {"heterogeneous": True},  # the student predicts x0, the teacher does not
    "target_ema": {"objectives": {"consistency": {"target": "ema"}}},  # network of CD's target (Eq. 6)
    "target_student": {"objectives": {"consistency": {"target": "student"}}},
    "rollout_data": {"rollout": "data"},  # the generator's input in training
    # The times at which scores are compared: the paper's rule, and that of TDM.
    "matched_all": {"matched_times": "all"},
    "trajectory": {"matched_times": "trajectory"},
    "ancestral": {"sampler": "ancestral"},
    "renoise": {"sampler": "renoise"},
    "unnormalized": {"objectives": {"variational_score": {"normalize": False}}},  # VSD's gradient
}

# Updates of the fake score in an iteration, those that share a chain of the student, whether examples share their time.
SAVINGS = {
    "shared_time": (2, 1, True),
    "shared_rollout": (2, 2, False),
    "shared": (2, 2, True),
    "five": (5, 1, False),  # as many updates as in the paper
    "five_shared_rollout": (5, 5, False),
    "five_shared": (5, 5, True),
}


def recipes(guidance: float) -> dict[str, tuple[dict, dict]]:
    """Name -> (objectives, changes of the student), for a teacher with this guidance."""
    vsd = {"variational_score": 1.0}
    dcm = {"consistency": {"weight": 0.5, "target": "student", "steps": 1}}
    rcm = {"continuous_consistency": {"weight": 0.5, "guidance": guidance, "warmup": 50}}
    flow_map = {"flow_map": {"weight": 1.0, "guidance": guidance}}
    found = {
        "vsd": (vsd, {}),
        "cd": ({"consistency": 0.5}, {}),
        "dcm": (dcm, {}),  # discrete consistency that reaches the clean end
        "vsd_dcm": (vsd | dcm, {}),
        "rcm": (rcm, {}),  # continuous-time consistency
        "vsd_rcm": (vsd | rcm, {}),
        "vsd_trajectory": (vsd, {"matched_times": "trajectory"}),  # TDM
        "vsd_cd_trajectory": (BOTH, {"matched_times": "trajectory"}),
        "vsd_cd_adversarial": (BOTH | {"adversarial": 0.03}, {}),
        "vsd_cd_lrm": (BOTH | {"latent_reward": 0.15}, {}),  # a reward from the start, as in DMDR
        "vsd_cd_renoise": (BOTH, {"sampler": "renoise"}),
        "vsd_cd_1_step": (BOTH, {"times": (999,)}),
        "flow_map": (flow_map, {"flow_map": True}),
        "vsd_flow_map": (vsd | {"flow_map": flow_map["flow_map"] | {"weight": 0.5}}, {"flow_map": True}),
    }
    if guidance:
        without = {name: {"weight": weight, "guidance": 0.0} for name, weight in BOTH.items() if weight}
        found["vsd_cd_unguided"] = BOTH | without, {}
        decoupled = {"variational_score": {"weight": 1.0, "decoupled": True}}
        found["vsd_cd_decoupled"] = BOTH | decoupled, {"matched_times": "all"}
    return found


# Numbers of updates by the FLOPs of one, see "Objectives since the paper" in docs/evidence.md.
EQUAL_ARITHMETIC = {
    "vsd": 424,
    "cd": 1033,
    "vsd_dcm": 346,
    "vsd_rcm": 332,
    "vsd_flow_map": 332,
    "vsd_trajectory": 424,
}

# With 4 steps nearest to data among those that show the caption in 93 % of their videos; the last, with 1 step.
PAIRS_BEST = ("vsd_cd", "vsd_dcm", "vsd_trajectory", "vsd_cd_trajectory", "vsd_cd_renoise", "vsd_cd_1_step")

# Numbers of updates for about equal time; docs/evidence.md has the times.
STEPWISE = {
    "lrm": (80, {"latent_reward": 0.15}, {}),
    "ddpo": (80, {"policy_gradient": 1.0}, {}),
}
GRADIENTS = {
    "refl": (110, {"refl": 1.0}, {}),
    "draft_1": (80, {"draft": 1.0}, {}),
}
# Attempts to lift the policy gradient above its noise: all transitions in place of the paper's two, a weight at which
# VSD and CD still count, groups of videos of one caption (GRPO), a tie to the start, and many videos, at any cost of
# time.
KL = {"start_divergence": {"weight": 1e-4, "steps": 4}}  # a hundredth of the policy gradient's weight
POLICIES = {
    "ddpo_4": (80, {"policy_gradient": {"weight": 1.0, "steps": 4}}, {}),
    "ddpo_4_weak": (80, {"policy_gradient": {"weight": 0.01, "steps": 4}}, {}),
    "grpo_8": (80, {"policy_gradient": {"weight": 0.01, "steps": 4, "group": 8}}, {}),
    "grpo_8_kl": (80, {"policy_gradient": {"weight": 0.01, "steps": 4, "group": 8}} | KL, {}),
    "ddpo_4_256": (30, {"policy_gradient": {"weight": 1.0, "steps": 4}}, {"batch_size": 256, "accumulate": 4}),
}

EXPERIMENTS = {
    "base": _base,
    "objectives": _objectives,
    "prompts_alone": _prompts_alone,
    "wan": _wan,
    "lora": _lora,
    "lora_layers": _lora_layers,
    "extracted": _extracted,
    "ablations": _ablations,
    "ablations_vsd": _ablations_vsd,
    "savings": _savings,
    "frontier": _frontier,
    "frontier_more": _frontier_more,
    "frontier_long": _frontier_long,
    "pairs": _pairs,
    "pairs_frontier": _pairs_frontier,
    "pairs_best": _pairs_best,
    "long_prompts": _long_prompts,
    "short_prompts": _short_prompts,
    "rewards_step": _rewards_step,
    "rewards_smooth": _rewards_smooth,
    "rewards_from_teacher": _rewards_from_teacher,
    "overoptimisation": _overoptimisation,
    "reward_models": _reward_models,
    "collapse": _collapse,
}

# Experiment -> the experiment whose networks it uses, by default `base`; None: it trains all networks itself.
PARENTS = {
    "base": None,
    "wan": None,
    "long_prompts": None,
    "short_prompts": "long_prompts",
    "pairs": None,
    "pairs_frontier": "pairs",
    "pairs_best": "pairs",
}

# The world of the experiments that are not in the shapes world.
WORLDS = dict.fromkeys(("pairs", "pairs_frontier", "pairs_best"), pairs)
