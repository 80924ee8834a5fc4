"""A model's card, `config.json`: its fields, their ranges and meanings, in one place. Cards come from strangers.

`SCHEMA` is a JSON schema, `description` the meaning; the page docs/reference/checkpoint.md is made of it.
"""

import os
from typing import Any, get_args

from dollar_jax import diffusion, sampling, unipc
from dollar_jax.errors import UserError
from dollar_jax.reading import object_schema, read_json, require_schema

Card = dict[str, Any]
COMPONENTS = ("transformer", "vae", "text_encoder")
NETWORKS = (*COMPONENTS, "clip", "aesthetic")
SAMPLED = (
    *COMPONENTS,
    "tokenizer",
    "prediction_type",
    "schedule",
    "times",
    "sampler",
    "guidance",
    "negative_prompt",
    "video",
    "latent_shape",
)


def _told(description: str, node: dict) -> dict:
    return node | {"description": description}


def _integer(low: int, high: int) -> dict:
    return {"type": "integer", "minimum": low, "maximum": high}


def _per_channel(item: dict) -> dict:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": 10_000}


def _number(low: float | int, high: float | int) -> dict:
    return {"type": "number", "minimum": low, "maximum": high}


_POSITIVE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6}
_WORD = {"type": "string", "maxLength": 100}
_LINE = {"type": "string", "maxLength": 10_000, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*\Z"}
_SHA256 = {"type": "string", "pattern": r"^[0-9a-f]{64}\Z"}
# No absolute path, no `..`, nothing hidden.
_PATH = {"type": "string", "pattern": r"^(\.|[\w][\w.-]*(/[\w][\w.-]*)*)\Z", "maxLength": 200}
REPOSITORY = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}\Z"  # an id on the Hugging Face hub
_SIZE = {"anyOf": [{"type": ["boolean", "null"]}, _number(-1e6, 1e6), _WORD]}
_SIZES = {"anyOf": [*_SIZE["anyOf"], {"type": "array", "items": _SIZE, "maxItems": 100}]}
_ARCHITECTURE = {"type": "string", "pattern": r"^\w+(\.\w+)*(:\w+)?\Z", "maxLength": 200}
_CONFIG = {
    "type": "object",
    "additionalProperties": {"anyOf": [*_SIZES["anyOf"], {"type": "object", "additionalProperties": _SIZES}]},
}
_NETWORK = object_schema(
    ("architecture", "config", "path", "item"),
    architecture=_told("A module of `dollar_jax.models`, or `module:function` with `--trust=module`.", _ARCHITECTURE),
    config=_told("Sizes of the network: the arguments of the architecture's `build`.", _CONFIG),
    path=_told("The checkpoint with its parameters; `checkpoints` is the newest there.", _PATH),
    item=_told(
        "The entry of the checkpoint with its parameters; '': all of it.",
        {"type": "string", "pattern": r"^\w*\Z", "maxLength": 100},
    ),
    scaling_factor=_told(
        "Of a VAE: (z - shift) scale has unit variance. A number, or one for each channel; null before it is measured.",
        {"anyOf": [{"type": "null"}, _POSITIVE, _per_channel(_POSITIVE)]},
    ),
    shift_factor=_told("Of a VAE: the shift.", {"anyOf": [_number(-1e6, 1e6), _per_channel(_number(-1e6, 1e6))]}),
    source=_told("The config.json with which a converted network came.", {"type": "object"}),
    lora=_told(
        "Of a transformer: it is an adapter on another one.",
        object_schema(
            ("base", "sha256", "rank", "alpha"),
            base=_told("Checkpoint of the other one.", _PATH),
            sha256=_told("Digest of its parameters, `dollar_jax.checkpoint.digest`.", _SHA256),
            rank=_told("Rank of the adapter.", _integer(1, 100_000)),
            alpha=_told("The adapter is scaled by alpha / rank; 0: by 1.", _number(-1e6, 1e6)),
        ),
    ),
)
_BETA = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_STEPS = _told("Number of training times.", _integer(1, 100_000))
_SCHEDULES = [
    object_schema(
        ("kind",),
        kind=_told("A discrete diffusion.", {"const": "ddpm"}),
        steps=_STEPS,
        betas=_told("How beta rises from the first to the last time.", {"enum": ["linear", "scaled_linear"]}),
        beta_start=_told("The first beta.", _BETA),
        beta_end=_told("The last beta.", _BETA),
        zero_snr=_told("Whether the last time is made pure noise.", {"type": "boolean"}),
        snr_shift=_told("Divisor of the signal-to-noise ratio.", _POSITIVE),
    ),
    object_schema(
        ("kind",),
        kind=_told("A rectified flow.", {"const": "flow"}),
        steps=_STEPS,
        shift=_told("s: noise levels are moved to s u / (1 + (s - 1) u).", _POSITIVE),
        spacing=_told("Rule for the times of sampling steps.", {"enum": list(get_args(diffusion.Spacing))}),
    ),
]
SCHEMA = object_schema(
    ("role",),
    role=_told("What the model is.", {"enum": ["teacher", "student", *NETWORKS]}),
    **dict.fromkeys(NETWORKS, _told("A network, see below.", _NETWORK)),
    tokenizer=_told(
        "The tokenizer.",
        object_schema(
            ("path", "length"),
            path=_told("Its Hugging Face folder.", _PATH),
            length=_told("Number of tokens of a caption.", _integer(1, 100_000)),
            clean=_told(
                "Whether captions are cleaned first, `dollar_jax.data.text.clean_caption`.", {"type": "boolean"}
            ),
        ),
    ),
    prediction_type=_told("What the transformer predicts.", {"enum": list(get_args(diffusion.PredictionType))}),
    schedule=_told(
        "The noise schedule, of kind `ddpm` or `flow`.", {"type": "object", "required": ["kind"], "oneOf": _SCHEDULES}
    ),
    times=_told(
        "Times of the sampling steps, points of the schedule.",
        {"type": "array", "items": _number(0, 100_000), "minItems": 1, "maxItems": 100_000},
    ),
    sampler=_told("The solver.", {"enum": [*get_args(sampling.Sampler), *unipc.ORDER]}),
    guidance=_told("The paper's w: diffusers' scale is w + 1.", _number(-1, 1000)),
    low_guidance=_told(
        "Another guidance for late times, where a second expert predicts.",
        object_schema(
            ("guidance", "below"),
            guidance=_told("The paper's w there.", _number(-1, 1000)),
            below=_told("The time below which it holds.", _number(0, 100_000)),
        ),
    ),
    negative_prompt=_told("The caption that guidance moves away from; '': the empty one.", _LINE),
    video=_told(
        "Size of the videos.",
        object_schema(
            ("frames", "height", "width", "fps", "independent_chunk"),
            frames=_told("Number of frames.", _integer(1, 100_000)),
            height=_told("Height in pixels.", _integer(1, 100_000)),
            width=_told("Width in pixels.", _integer(1, 100_000)),
            fps=_told("Frames a second.", {"type": "number", "exclusiveMinimum": 0, "maximum": 1000}),
            independent_chunk=_told("Number of frames that the VAE sees at once; 0: all.", _integer(0, 100_000)),
        ),
    ),
    latent_shape=_told(
        "Shape [f, h, w, c] of a video's latents.",
        {"type": "array", "items": _integer(1, 100_000), "minItems": 4, "maxItems": 4},
    ),
    lead=_told("How many of the f latent frames are in front of the video, as in CogVideoX 1.5.", _integer(0, 1000)),
    objectives=_told(
        "What a student was trained for: objective and weight.",
        {"type": "object", "additionalProperties": _number(-1e9, 1e9)},
    ),
    hub=_told(
        "The folder on the Hugging Face hub from which the model, or its teacher, was converted.",
        object_schema(
            ("repository", "commit"),
            repository=_told("Owner and name.", {"type": "string", "pattern": REPOSITORY}),
            commit=_told("The commit.", {"type": "string", "pattern": r"^[0-9a-f]{40}\Z"}),
        ),
    ),
    merged=_told(
        "LoRAs that were merged into the transformer, or its teacher's, in conversion.",
        {
            "type": "array",
            "items": object_schema(
                ("file", "sha256"), file=_told("Its name.", _LINE), sha256=_told("Its digest.", _SHA256)
            ),
            "maxItems": 10,
        },
    ),
)


def read(path: str | os.PathLike) -> Card:
    """The card in a file.

    Raises:
      UserError: it is no JSON, or a field is missing, unknown, of another type or out of its range.
    """
    card = read_json(path)
    check(card, path)
    return card


def check(card: Any, place: str | os.PathLike) -> None:
    """Raises UserError where `read` does; `place` is for the message."""
    require_schema(card, SCHEMA, place, "see dollar_jax/card.py")
    if len(set(times := card.get("times", []))) < len(times):  # jsonschema's uniqueItems takes minutes
        raise UserError(f"{place}: times: two of them are equal")
    if {"times", "schedule"} <= card.keys():
        diffusion.make_schedule(**card["schedule"]).require(card["times"], f"{place}: times")
        if card.get("sampler") in unipc.ORDER and card["schedule"]["kind"] != "flow":
            raise UserError(f"{place}: sampler: {card['sampler']} is for a schedule of kind flow")
    for name in ("scaling_factor", "shift_factor"):
        factors, channels = card.get("vae", {}).get(name), card.get("latent_shape", [0])[-1]
        if isinstance(factors, list) and channels and len(factors) != channels:
            raise UserError(f"{place}: vae.{name}: {len(factors)} numbers for latents of {channels} channels")
    if {"lead", "latent_shape"} <= card.keys() and card["lead"] >= card["latent_shape"][0]:
        raise UserError(f"{place}: lead: {card['lead']} of {card['latent_shape'][0]} latent frames leaves none")


def require(card: Card, names: tuple[str, ...] | list[str], place: str | os.PathLike) -> None:
    """Raises UserError if the card lacks one of these fields."""
    if missing := [name for name in names if name not in card]:
        raise UserError(f"{place}: this checkpoint has no {missing[0]}")
