"""A model's card, `config.json`: what its fields may be, checked in one place. Cards come from strangers.

  role          teacher, student, vae, or what a single converted network is
  transformer, vae, text_encoder, clip, aesthetic    {architecture, config, path, item}: a network and its parameters,
                the entry `item` of the checkpoint at `path`; `path` = checkpoints means the newest. The vae also has
                scaling_factor and shift_factor, a number or one for each channel: (z - shift) scale has unit variance.
                A transformer with `lora` {base, sha256, rank, alpha} is an adapter on the network at `base`, whose
                parameters have this digest (`checkpoint.digest`); alpha 0 is the rank
  tokenizer     {path, length, clean}, a Hugging Face tokenizer folder; clean: whether captions are cleaned before it
                (`dollar_jax.data.text.clean_caption`), by default not
  prediction_type, schedule, times, sampler, guidance    how to sample, see `dollar_jax.sampling`; times are points of
                the schedule, `diffusion.Schedule`
  low_guidance  {guidance, below}: another guidance for times below one, where a second expert predicts
  negative_prompt    the caption that guidance moves away from, '' for the empty one
  video         {frames, height, width, fps, independent_chunk}: the last is 0, or how many the VAE sees at once
                (`dollar_jax.models.independent_chunks`); latent_shape [f, h, w, c]
  lead          how many of these f latent frames are in front of the video (CogVideoX 1.5 needs an even number)
  objectives    what a student was trained for, with weights
  hub           {repository, commit} on the Hugging Face hub that the model, or its teacher, was converted from
  merged        [{file, sha256}]: the LoRAs that were merged into the transformer, or its teacher's, in conversion

Paths are relative to the card's folder and stay inside it. A converted network also has its `source`, the config.json
that it came with.
"""

import os
from typing import Any, get_args

from dollar_jax import diffusion, sampling, unipc
from dollar_jax.errors import UserError
from dollar_jax.reading import read_json, require_schema

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


def _object(required: tuple[str, ...] | list[str] = (), **properties) -> dict:
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


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
_NETWORK = _object(
    ("architecture", "config", "path", "item"),
    architecture={"type": "string", "pattern": r"^\w+(\.\w+)*(:\w+)?\Z", "maxLength": 200},
    config={
        "type": "object",
        "additionalProperties": {"anyOf": [*_SIZES["anyOf"], {"type": "object", "additionalProperties": _SIZES}]},
    },
    path=_PATH,
    item={"type": "string", "pattern": r"^\w*\Z", "maxLength": 100},
    scaling_factor={"anyOf": [{"type": "null"}, _POSITIVE, _per_channel(_POSITIVE)]},
    shift_factor={"anyOf": [_number(-1e6, 1e6), _per_channel(_number(-1e6, 1e6))]},
    source={"type": "object"},
    lora=_object(
        ("base", "sha256", "rank", "alpha"),
        base=_PATH,
        sha256=_SHA256,
        rank=_integer(1, 100_000),
        alpha=_number(-1e6, 1e6),
    ),
)
_SCHEDULES = [
    _object(
        ("kind",),
        kind={"const": "ddpm"},
        steps=_integer(1, 100_000),
        betas={"enum": ["linear", "scaled_linear"]},
        beta_start={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        beta_end={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        zero_snr={"type": "boolean"},
        snr_shift=_POSITIVE,
    ),
    _object(
        ("kind",),
        kind={"const": "flow"},
        steps=_integer(1, 100_000),
        shift=_POSITIVE,
        spacing={"enum": list(get_args(diffusion.Spacing))},
    ),
]
SCHEMA = _object(
    ("role",),
    role={"enum": ["teacher", "student", *NETWORKS]},
    **dict.fromkeys(NETWORKS, _NETWORK),
    tokenizer=_object(("path", "length"), path=_PATH, length=_integer(1, 100_000), clean={"type": "boolean"}),
    prediction_type={"enum": ["conjugate", "v", "eps", "flow", "x0"]},
    schedule={"type": "object", "required": ["kind"], "oneOf": _SCHEDULES},
    times={"type": "array", "items": _number(0, 100_000), "minItems": 1, "maxItems": 100_000, "uniqueItems": True},
    sampler={"enum": [*get_args(sampling.Sampler), *unipc.ORDER]},
    guidance=_number(-1, 1000),
    low_guidance=_object(("guidance", "below"), guidance=_number(-1, 1000), below=_number(0, 100_000)),
    negative_prompt=_LINE,
    video=_object(
        ("frames", "height", "width", "fps", "independent_chunk"),
        frames=_integer(1, 100_000),
        height=_integer(1, 100_000),
        width=_integer(1, 100_000),
        fps={"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
        independent_chunk=_integer(0, 100_000),
    ),
    latent_shape={"type": "array", "items": _integer(1, 100_000), "minItems": 4, "maxItems": 4},
    lead=_integer(0, 1000),
    objectives={"type": "object", "additionalProperties": _number(-1e9, 1e9)},
    hub=_object(
        ("repository", "commit"),
        repository={"type": "string", "pattern": REPOSITORY},
        commit={"type": "string", "pattern": r"^[0-9a-f]{40}\Z"},
    ),
    merged={"type": "array", "items": _object(("file", "sha256"), file=_LINE, sha256=_SHA256), "maxItems": 10},
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
