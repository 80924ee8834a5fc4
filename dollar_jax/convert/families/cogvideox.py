"""CogVideoX: 2B, 5B and 1.5-5B."""

import inspect
from collections.abc import Mapping
from typing import Any

from dollar_jax import diffusion
from dollar_jax.card import Card
from dollar_jax.convert import cogvideox_dit, cogvideox_vae, t5
from dollar_jax.convert.families.family import Architecture, Family, scheduler_settings
from dollar_jax.pipeline import at_size

STOCK = "CogVideoXDDIMScheduler"
# The public 5B comes with another solver for the same model; here DDIM samples it.
KNOWN = (STOCK, "CogVideoXDPMScheduler")
PREDICTION_TYPES = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}
STEPS = 50  # the stock pipeline's
# The defaults of diffusers for fields that the file leaves out.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "set_alpha_to_one": True,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 3.0,
}
FIXED = {"trained_betas": None, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
_BETA = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_SCHEDULER = {
    "properties": {
        "num_train_timesteps": {"type": "integer", "minimum": 1, "maximum": 100_000},
        "beta_start": _BETA,
        "beta_end": _BETA,
        "rescale_betas_zero_snr": {"type": "boolean"},
        "snr_shift_scale": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
    }
}


def read_scheduler(theirs: Mapping[str, Any]) -> Card:
    """`prediction_type`, `schedule`, `times` and `sampler`, from the content of scheduler_config.json.

    Raises:
      UserError: another scheduler, or settings that cannot be followed here.
    """
    allowed = {name: (value,) for name, value in FIXED.items()}
    allowed |= {"prediction_type": tuple(PREDICTION_TYPES), "beta_schedule": ("linear", "scaled_linear")}
    theirs = scheduler_settings(theirs, KNOWN, _SCHEDULER, DEFAULTS, allowed)
    schedule = {
        "kind": "ddpm",
        "steps": theirs["num_train_timesteps"],
        "betas": theirs["beta_schedule"],
        "beta_start": theirs["beta_start"],
        "beta_end": theirs["beta_end"],
        "zero_snr": theirs["rescale_betas_zero_snr"],
        "snr_shift": theirs["snr_shift_scale"],
    }
    prediction_type = PREDICTION_TYPES[theirs["prediction_type"]]
    ours = diffusion.make_schedule(**schedule)
    diffusion.check_prediction_type(prediction_type, ours)
    return {
        "prediction_type": prediction_type,
        "schedule": schedule,
        "times": ours.spaced(STEPS),
        "sampler": "ddim",
    }


def write_scheduler(card: Card) -> tuple[str, dict[str, Any]] | None:
    """Diffusers' DDIM where it samples as the card says: at its own, equally spaced times."""
    schedule = dict(card["schedule"])
    theirs = {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}
    if schedule.pop("kind") != "ddpm" or card["sampler"] != "ddim" or card["prediction_type"] not in theirs:
        return None
    bound = inspect.signature(diffusion.ddpm_schedule).bind(**schedule)
    bound.apply_defaults()
    schedule, times = bound.arguments, sorted(card["times"])
    if schedule["steps"] % len(times) or times != list(diffusion.ddpm_schedule(**schedule).spaced(len(times))):
        return None
    return STOCK, {
        "num_train_timesteps": schedule["steps"],
        "beta_schedule": schedule["betas"],
        "beta_start": schedule["beta_start"],
        "beta_end": schedule["beta_end"],
        "rescale_betas_zero_snr": schedule["zero_snr"],
        "snr_shift_scale": schedule["snr_shift"],
        "prediction_type": theirs[card["prediction_type"]],
        "clip_sample": False,
        **FIXED,
    }


def text_length(card: Card) -> int:
    """The transformer is made for it."""
    return card["transformer"]["config"]["max_text_seq_length"]


def at_own_size(card: Card) -> Card:
    """The transformer's config counts frames and, in latents, rows and columns."""
    network, vae = card["transformer"]["config"], card["vae"]["config"]
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    size = {"height": network["sample_height"] * scale, "width": network["sample_width"] * scale, "fps": 8}
    if stride := network["patch_size_t"]:
        # CogVideoX 1.5 calls the range of its positions a size; it was trained at this one.
        size = {"height": 768, "width": 1360, "fps": 16} if network["sample_height"] == 300 else size
    card = at_size(card, {"frames": network["sample_frames"], **size, "independent_chunk": 0})
    if stride and (rest := card["latent_shape"][0] % stride):
        card["lead"] = stride - rest
        card["latent_shape"][0] += card["lead"]
    return card


def call(card: Card) -> dict[str, Any]:
    """Diffusers adds the leading latent frames by itself."""
    ratio = card["vae"]["config"]["temporal_compression_ratio"]
    negative = {"negative_prompt": prompt} if (prompt := card.get("negative_prompt")) else {}
    return {
        "num_inference_steps": len(card["times"]),
        "guidance_scale": card["guidance"] + 1,
        "num_frames": (card["latent_shape"][0] - card.get("lead", 0) - 1) * ratio + 1,
        "height": card["video"]["height"],
        "width": card["video"]["width"],
        "max_sequence_length": card["tokenizer"]["length"],
        **negative,
    }


def _public(**config) -> Card:
    """The card of a public model, whose transformer differs by `config` from the defaults of `cogvideox_dit.Config`."""
    return {
        "transformer": {"architecture": "cogvideox_dit", "config": config},
        "vae": {"architecture": "cogvideox_vae", "config": {}, "scaling_factor": 1.0},
        "text_encoder": {
            "architecture": "t5",
            "config": {"d_model": 4096, "num_layers": 24, "d_ff": 10240, "num_heads": 64},  # T5-XXL
        },
        "tokenizer": {"length": 226},
        "prediction_type": "v",
        "schedule": {"kind": "ddpm", "betas": "scaled_linear", "zero_snr": True, "snr_shift": 3.0},
    }


_LARGE = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}

FAMILY = Family(
    pipeline="CogVideoXPipeline",
    components=(
        Architecture("transformer", "cogvideox_dit", cogvideox_dit, "diffusers", "CogVideoXTransformer3DModel"),
        Architecture("vae", "cogvideox_vae", cogvideox_vae, "diffusers", "AutoencoderKLCogVideoX"),
        Architecture("text_encoder", "t5", t5, "transformers", "T5EncoderModel"),
    ),
    public={
        "2b": _public(),
        "5b": _public(**_LARGE),
        "1.5-5b": _public(**_LARGE, patch_size_t=2, patch_bias=False, sample_height=300, sample_width=300),
    },
    guidance=5.0,  # the paper's w; the stock pipeline's guidance_scale of 6
    text_length=text_length,
    at_own_size=at_own_size,
    read_scheduler=read_scheduler,
    write_scheduler=write_scheduler,
    call=call,
    unscaled="latents.permute(0, 2, 1, 3, 4) / pipe.vae.config.scaling_factor",
)
