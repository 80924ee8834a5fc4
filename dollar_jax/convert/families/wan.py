"""Wan: 2.1 T2V 1.3B and 14B, 2.2 TI2V-5B and T2V-A14B."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dollar_jax import diffusion
from dollar_jax.card import Card
from dollar_jax.convert import anyflow_dit, umt5, wan_dit, wan_experts, wan_vae
from dollar_jax.convert.families.family import Architecture, Family, scheduler_settings
from dollar_jax.errors import UserError
from dollar_jax.pipeline import at_size

UNIPC, EULER = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
STEPS = 50  # the stock pipeline's
LENGTH = 512  # tokens of a caption, the stock pipeline's; the networks take any number
# The prompt that the authors' code guides away from. Diffusers' default is the empty one.
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量"  # noqa: RUF001
    "，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸"  # noqa: RUF001
    "形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒"  # noqa: RUF001
    "着走"
)
# The defaults of diffusers for fields that a file leaves out.
DEFAULTS = {
    UNIPC: {
        "num_train_timesteps": 1000,
        "flow_shift": 1.0,
        "solver_order": 2,
        "disable_corrector": [],
        "prediction_type": "epsilon",
        "use_flow_sigmas": False,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "final_sigmas_type": "zero",
        "thresholding": False,
        "solver_p": None,
    },
    EULER: {"num_train_timesteps": 1000, "shift": 1.0, "invert_sigmas": False, "stochastic_sampling": False},
}
# Beside the fields of `_SCHEDULER`, only the defaults can be followed here, but for these.
FLOW = {UNIPC: {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, EULER: {}}
OFF = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting", "shift_terminal")
_SHIFT = {"type": "number", "exclusiveMinimum": 0, "maximum": 1000}
_SCHEDULER = {
    "properties": {
        "num_train_timesteps": {"type": "integer", "minimum": 1, "maximum": 100_000},
        "flow_shift": _SHIFT,
        "shift": _SHIFT,
        "solver_order": {"enum": [1, 2]},
        "disable_corrector": {"type": "array", "maxItems": 1000},
    }
}


def read_scheduler(theirs: Mapping[str, Any]) -> Card:
    """`prediction_type`, `schedule`, `times` and `sampler`, from the content of scheduler_config.json.

    Raises:
      UserError: another scheduler, or settings that cannot be followed here.
    """
    kind = EULER if theirs.get("_class_name") == EULER else UNIPC
    wanted = DEFAULTS[kind] | FLOW[kind]
    allowed = {field: (value,) for field, value in wanted.items() if field not in _SCHEDULER["properties"]}
    theirs = scheduler_settings(theirs, tuple(DEFAULTS), _SCHEDULER, DEFAULTS[kind], allowed)
    for field in OFF:
        if theirs.get(field):
            raise UserError(f"the scheduler has {field} = {theirs[field]!r}, which cannot be converted: turn it off")
    schedule = {"kind": "flow", "steps": theirs["num_train_timesteps"]}
    if kind == EULER:
        sampler, count = "ddim", STEPS
        schedule |= {"shift": theirs["shift"], "spacing": "euler"}
    else:
        order, off = theirs["solver_order"], theirs["disable_corrector"]
        if off and (order != 1 or off != list(range(len(off)))):
            raise UserError("the scheduler has a disable_corrector: only order 1 without a corrector can be converted")
        sampler, count = "ddim" if off else {1: "unipc1", 2: "unipc"}[order], len(off) or STEPS
        schedule |= {"shift": theirs["flow_shift"], "spacing": "unipc"}
    times = diffusion.make_schedule(**schedule).spaced(count)
    return {"prediction_type": "flow", "schedule": schedule, "times": times, "sampler": sampler}


def write_scheduler(card: Card) -> tuple[str, dict[str, Any]] | None:
    """Diffusers' UniPC or Euler, where one has the card's solver and, for its number of steps, the card's times.

    UniPC without its corrector and Euler at `stretched` times fit students: deterministic ones, and any whose number of
    steps stays the same. Only Euler draws new noise.
    """
    if card["schedule"]["kind"] != "flow" or card["prediction_type"] != "flow":
        return None
    schedule, count, sampler = diffusion.make_schedule(**card["schedule"]), len(card["times"]), card["sampler"]
    if not np.allclose(sorted(card["times"]), schedule.spaced(count), rtol=0, atol=1e-3):
        return None
    steps = {"num_train_timesteps": len(schedule.times)}
    match schedule.spacing, sampler:
        case "unipc", "ddim" | "unipc" | "unipc1":
            return UNIPC, {
                **steps,
                "prediction_type": "flow_prediction",
                "use_flow_sigmas": True,
                "flow_shift": schedule.shift,
                "solver_order": 2 if sampler == "unipc" else 1,
                "disable_corrector": list(range(count)) if sampler == "ddim" else [],
            }
        case "euler", "ddim":
            return EULER, {**steps, "shift": schedule.shift}
        case "stretched", "ddim" | "renoise":
            shift, terminal = diffusion.stretched_euler(count, schedule.shift)
            end = {"shift_terminal": terminal} if count > 1 else {}
            return EULER, {**steps, "shift": shift, **end, "stochastic_sampling": sampler == "renoise"}
    return None


def write_flow_map_scheduler(card: Card) -> tuple[str, dict[str, Any]] | None:
    """The scheduler of AnyFlow, which takes any number of steps, spaced as ours."""
    if card["schedule"]["kind"] != "flow" or (card["prediction_type"], card["sampler"]) != ("flow", "ddim"):
        return None
    schedule = diffusion.make_schedule(**card["schedule"])
    settings = {"num_train_timesteps": len(schedule.times), "shift": schedule.shift}
    return ("FlowMapEulerDiscreteScheduler", settings) if schedule.spacing == "trailing" else None


def text_length(card: Card) -> int:
    """The same for all, the stock pipeline's."""
    return LENGTH


def at_own_size(card: Card) -> Card:
    """The networks take any size; 2.2's VAE, with its 48 channels, belongs to the 5B, which was trained at 720p."""
    size = {"frames": 81, "height": 480, "width": 832, "fps": 16}
    if card["vae"]["config"].get("is_residual"):
        size = {"frames": 121, "height": 704, "width": 1280, "fps": 24}
    return at_size(card, {**size, "independent_chunk": 0})


def index(card: Card) -> dict[str, Any]:
    """The 5B's pipeline gives every token a time of its own; for text to video they are the same."""
    return {
        "transformer_2": [None, None],
        "boundary_ratio": None,
        "expand_timesteps": bool(card["vae"]["config"].get("is_residual")),
    }


def call(card: Card) -> dict[str, Any]:
    frames, height, width = (card["video"][name] for name in ("frames", "height", "width"))
    more = {"negative_prompt": prompt} if (prompt := card["negative_prompt"]) and card["guidance"] else {}
    if low := card.get("low_guidance"):
        more["guidance_scale_2"] = low["guidance"] + 1
    return {
        "num_inference_steps": len(card["times"]),
        "guidance_scale": card["guidance"] + 1,
        "num_frames": frames,
        "height": height,
        "width": width,
        "max_sequence_length": card["tokenizer"]["length"],
        **more,
    }


def boundary(index: Mapping[str, Any]) -> dict[str, Any]:
    """The first time of the expert for high noise; the pipeline has it as a share of 1000."""
    ratio = index.get("boundary_ratio")
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise UserError(f"model_index.json has boundary_ratio = {ratio!r:.100}: two transformers need one in 0..1")
    return {"boundary": 1000 * ratio}


def experts_index(card: Card) -> dict[str, Any]:
    ratio = card["transformer"]["config"]["boundary"] / 1000
    return {"boundary_ratio": ratio, "expand_timesteps": False}


def _public(vae=(), transformer: str = "wan_dit", **config) -> Card:
    """The card of a public model, whose transformer differs by `config` from the defaults of `wan_dit.Config`."""
    return {
        "transformer": {"architecture": transformer, "config": config},
        "vae": {"architecture": "wan_vae", "config": dict(vae), "scaling_factor": 1.0},
        "text_encoder": {
            "architecture": "umt5",
            "config": {"vocab_size": 256384, "d_model": 4096, "num_layers": 24, "d_ff": 10240, "num_heads": 64},
        },
        "tokenizer": {"length": LENGTH},
        "prediction_type": "flow",
        "schedule": {"kind": "flow", "shift": 5.0, "spacing": "unipc"},
    }


_LARGE = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}

FAMILY = Family(
    pipeline="WanPipeline",
    components=(
        Architecture("transformer", "wan_dit", wan_dit, "diffusers", "WanTransformer3DModel"),
        Architecture("vae", "wan_vae", wan_vae, "diffusers", "AutoencoderKLWan"),
        Architecture("text_encoder", "umt5", umt5, "transformers", "UMT5EncoderModel"),
    ),
    public={
        "wan2.1-1.3b": _public(),
        "wan2.1-14b": _public(**_LARGE),
        "wan2.2-5b": _public(
            {
                "base_dim": 160,
                "decoder_base_dim": 256,
                "z_dim": 48,
                "is_residual": True,
                "patch_size": 2,
            },
            num_attention_heads=24,
            ffn_dim=14336,
            in_channels=48,
            out_channels=48,
        ),
    },
    guidance=4.0,  # the stock pipeline's guidance_scale of 5
    negative_prompt=NEGATIVE,
    clean=True,
    text_length=text_length,
    at_own_size=at_own_size,
    read_scheduler=read_scheduler,
    write_scheduler=write_scheduler,
    index=index,
    call=call,
    unscaled="latents * torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)"
    " + torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)",
)

FLOW_MAP = replace(
    FAMILY,
    pipeline="AnyFlowPipeline",
    components=(
        Architecture("transformer", "wan_dit", anyflow_dit, "diffusers", "AnyFlowTransformer3DModel"),
        *FAMILY.components[1:],
    ),
    write_scheduler=write_flow_map_scheduler,
    index=lambda card: {},
)
FAMILY = replace(FAMILY, flow_map=FLOW_MAP)
EXPERTS = replace(
    FAMILY,
    components=(
        Architecture("transformer", "wan_experts", wan_experts, "diffusers", "WanTransformer3DModel"),
        *FAMILY.components[1:],
    ),
    public={"wan2.2-a14b": _public(transformer="wan_experts", **_LARGE)},
    folders=tuple(wan_experts.FOLDERS),
    beside=boundary,
    index=experts_index,
    guidance=3.0,  # the authors' 4 for high noise
    low_guidance=2.0,  # and 3 for low noise
)
