"""How a model is sampled: diffusers' scheduler_config.json and the fields of our cards."""

import inspect
from collections.abc import Mapping
from typing import Any

from dollar_jax import diffusion
from dollar_jax.checkpoint import Card
from dollar_jax.errors import UserError

STOCK = "CogVideoXDDIMScheduler"
# The public 5B comes with another solver for the same model; here DDIM samples it.
KNOWN = (STOCK, "CogVideoXDPMScheduler")
PREDICTION_TYPES = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}
STEPS = 50  # the stock pipeline's
# What diffusers takes where the file says nothing.
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


def to_card(theirs: Mapping[str, Any]) -> Card:
    """prediction_type, schedule, times and sampler, from the content of scheduler_config.json.

    Raises:
      UserError: a scheduler that is not known, or set up in a way that is not.
    """
    name = theirs.get("_class_name")
    if name not in KNOWN:
        raise UserError(f"the scheduler is a {name}, which cannot be converted; known are {', '.join(KNOWN)}")
    theirs = DEFAULTS | dict(theirs)
    allowed = {name: (value,) for name, value in FIXED.items()}
    allowed |= {"prediction_type": tuple(PREDICTION_TYPES), "beta_schedule": ("linear", "scaled_linear")}
    for name, values in allowed.items():
        if theirs[name] not in values:
            wanted = " or ".join(map(repr, values))
            raise UserError(f"the scheduler has {name} = {theirs[name]!r}: only {wanted} can be converted")
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
    diffusion.check_prediction_type(prediction_type, diffusion.make_schedule(**schedule))
    return {
        "prediction_type": prediction_type,
        "schedule": schedule,
        "times": diffusion.trailing_times(STEPS, schedule["steps"]),
        "sampler": "ddim",
    }


def from_card(card: Card) -> tuple[str, dict[str, Any]]:
    """(class, content of scheduler_config.json) that samples as the card says.

    The stock scheduler where it can, else `DollarScheduler` of `dollar_scheduler.py`, which goes with the folder: stock
    ones know neither conjugate velocity nor flows, nor times of one's own, nor samplers that draw new noise.
    """
    times, schedule = sorted(card["times"], reverse=True), dict(card["schedule"])
    table = diffusion.make_schedule(**schedule)
    steps = table.signal.shape[0] - 1
    trailing = steps % len(times) == 0 and sorted(times) == list(diffusion.trailing_times(len(times), steps))
    kinds = {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}
    stock = schedule.pop("kind") == "ddpm" and card["sampler"] == "ddim" and card["prediction_type"] in kinds
    if trailing and stock:
        bound = inspect.signature(diffusion.ddpm_schedule).bind(**schedule)
        bound.apply_defaults()
        parameters = bound.arguments
        return STOCK, {
            "num_train_timesteps": parameters["steps"],
            "beta_schedule": parameters["betas"],
            "beta_start": parameters["beta_start"],
            "beta_end": parameters["beta_end"],
            "rescale_betas_zero_snr": parameters["zero_snr"],
            "snr_shift_scale": parameters["snr_shift"],
            "prediction_type": kinds[card["prediction_type"]],
            "clip_sample": False,
            **FIXED,
        }
    return "DollarScheduler", {
        "times": times,
        "signal": [float(table.signal[time + 1]) for time in times],
        "noise": [float(table.noise[time + 1]) for time in times],
        "prediction_type": card["prediction_type"],
        "sampler": card["sampler"],
    }
