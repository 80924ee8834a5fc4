"""The VAEs of Wan 2.1 and 2.2 in diffusers: their config.json and their keys in our names."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from dollar_jax.convert.tables import Change, Rule, convolution_rules, layer_rules, pointwise
from dollar_jax.errors import UserError
from dollar_jax.models.wan_vae import build
from dollar_jax.reading import require_schema

# Sizes that diffusers names as we do; it spells `temperal_downsample`, and its patch_size may be null.
SIZES = ("base_dim", "decoder_base_dim", "z_dim", "dim_mult", "num_res_blocks", "is_residual")
# Diffusers' values of what the public 2.1 leaves out.
DEFAULTS = {
    "decoder_base_dim": None,
    "is_residual": False,
    "patch_size": None,
    "attn_scales": [],
    "dropout": 0.0,
    "in_channels": 3,
    "out_channels": 3,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
_SIZE = {"type": "integer", "minimum": 1, "maximum": 10_000}
_LEVELS = {"type": "array", "minItems": 1, "maxItems": 10}
_CONFIG = {
    "required": ["base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample"],
    "properties": {
        "base_dim": _SIZE,
        "decoder_base_dim": {"anyOf": [{"type": "null"}, _SIZE]},
        "z_dim": _SIZE,
        "dim_mult": _LEVELS | {"items": _SIZE},
        "num_res_blocks": _SIZE,
        "temperal_downsample": _LEVELS | {"items": {"type": "boolean"}},
        "is_residual": {"type": "boolean"},
        "patch_size": {"anyOf": [{"type": "null"}, _SIZE]},
    },
}
_SCALE = {
    "required": ["latents_mean", "latents_std"],
    "properties": {
        "latents_mean": {"type": "array", "items": {"type": "number", "minimum": -1e6, "maximum": 1e6}},
        "latents_std": {"type": "array", "items": {"type": "number", "minimum": 1e-6, "maximum": 1e6}},
    },
}
_FILE = "the VAE's config.json"


def config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `models.wan_vae.build`, from the content of diffusers' config.json.

    `clip_output` of the public 2.2 is read by nobody: diffusers clips the pixels of both versions.

    Raises:
      UserError: a size is missing or is none, or the file asks for layers that the network does not have.
    """
    require_schema(theirs, _CONFIG, _FILE, "is it the VAE of Wan?")
    theirs = DEFAULTS | dict(theirs)
    ours = {name: theirs[name] for name in SIZES}
    ours |= {"temporal_downsample": theirs["temperal_downsample"], "patch_size": theirs["patch_size"] or 1}
    for name, value in _fixed(ours).items():
        if theirs[name] != value:
            raise UserError(f"{_FILE} has {name} = {theirs[name]!r:.100}: only {value!r} can be converted")
    return ours


def their_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`. The sizes of chunks are not part of it: they change no result."""
    ours = _with_defaults(config)
    theirs = {name: list(ours[name]) if name == "dim_mult" else ours[name] for name in SIZES}
    patch_size = None if ours["patch_size"] == 1 else ours["patch_size"]
    theirs |= {"temperal_downsample": list(ours["temporal_downsample"]), "patch_size": patch_size}
    return theirs | _fixed(ours)


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(build).parameters.items()} | dict(config)


def _fixed(ours: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of diffusers' config.json that the sizes decide, or that our network has at one value only."""
    patch, levels = ours["patch_size"], len(ours["dim_mult"])
    return {
        **{"attn_scales": [], "dropout": 0.0, "in_channels": 3 * patch**2, "out_channels": 3 * patch**2},
        "scale_factor_temporal": 2 ** sum(ours["temporal_downsample"]),
        "scale_factor_spatial": patch * 2 ** (levels - 1),
    }


def scale(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`shift_factor` m and `scaling_factor` 1/s of a card's VAE, from the means m and deviations s in config.json.

    Raises:
      UserError: the file does not give both for each channel.
    """
    require_schema(theirs, _SCALE, _FILE, "it describes the scale of the latents")
    mean, deviation, channels = theirs["latents_mean"], theirs["latents_std"], theirs["z_dim"]
    if not len(mean) == len(deviation) == channels:
        raise UserError(f"{_FILE} has {len(mean)} means and {len(deviation)} deviations for {channels} channels")
    return {"scaling_factor": [1 / x for x in deviation], "shift_factor": mean}


def their_scale(part: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `scale`, exact for deviations of up to 15 digits. A number stands for all channels."""
    channels = _with_defaults(part["config"])["z_dim"]
    factors, mean = (
        np.broadcast_to(np.asarray(x, float), channels).tolist()
        for x in (part["scaling_factor"], part.get("shift_factor", 0))
    )
    return {"latents_mean": mean, "latents_std": [_inverse(x) for x in factors]}


def _inverse(factor: float) -> float:
    """The shortest decimal s with 1/s = factor; 1/factor may differ from the original s in the last bit."""
    candidates = (float(f"{1 / factor:.{digits}g}") for digits in range(1, 18))
    return next((s for s in candidates if 1 / s == factor), 1 / factor)


# A convolution over time alone, [out, in, 3, 1, 1] <-> [3, in, out].
_in_time = Change(lambda x: x.reshape(x.shape[:3]).T, lambda x: x.T[..., None, None])


def table(config: Mapping[str, Any]) -> list[Rule]:
    """The rules for a network of `config`."""
    ours = _with_defaults(config)
    residual, blocks, levels = ours["is_residual"], ours["num_res_blocks"], len(ours["dim_mult"])
    rules = [
        *layer_rules("quant_conv", "encoder/quant", "kernel", pointwise(3)),
        *layer_rules("post_quant_conv", "decoder/quant", "kernel", pointwise(3)),
    ]
    for side in ("encoder", "decoder"):
        middle, attention = f"{side}/middle", f"{side}.mid_block.attentions.0"
        rules += [
            *convolution_rules({f"{side}.{name}": f"{side}/{name}" for name in ("conv_in", "conv_out")}),
            _norm(f"{side}.norm_out", f"{side}/norm_out"),
            *_block(f"{side}.mid_block.resnets.{{block}}", f"{middle}/blocks/{{block}}"),
            _norm(f"{attention}.norm", f"{middle}/attention/norm", axes=2),
            *layer_rules(f"{attention}.to_qkv", f"{middle}/attention/qkv", "kernel", pointwise(2)),
            *layer_rules(f"{attention}.proj", f"{middle}/attention/project", "kernel", pointwise(2)),
        ]
    up, down = "decoder.up_blocks.{level}", "encoder.down_blocks"
    rules += _block(f"{up}.resnets.{{block}}", "decoder/levels/{level}/blocks/{block}")
    rules += _resample(f"{up}.{'upsampler' if residual else 'upsamplers.0'}", "decoder/levels/{level}")
    if residual:
        rules += _block(f"{down}.{{level}}.resnets.{{block}}", "encoder/levels/{level}/blocks/{block}")
        return rules + _resample(f"{down}.{{level}}.downsampler", "encoder/levels/{level}")
    for level in range(levels):  # 2.1 counts all blocks and resamplings of the encoder in one list
        first, place = level * (blocks + 1), f"encoder/levels/{level}"
        for block in range(blocks):
            rules += _block(f"{down}.{first + block}", f"{place}/blocks/{block}")
        rules += _resample(f"{down}.{first + blocks}", place)
    return rules


def _block(theirs: str, ours: str) -> list[Rule]:
    """The rules of a residual block."""
    return [
        *convolution_rules({f"{theirs}.{name}": f"{ours}/{name}" for name in ("conv1", "conv2")}),
        *layer_rules(f"{theirs}.conv_shortcut", f"{ours}/shortcut", "kernel", pointwise(3)),
        *(_norm(f"{theirs}.{name}", f"{ours}/{name}") for name in ("norm1", "norm2")),
    ]


def _resample(theirs: str, ours: str) -> list[Rule]:
    """The rules of a change of resolution."""
    return [
        *convolution_rules({f"{theirs}.resample.1": f"{ours}/resample"}),
        *layer_rules(f"{theirs}.time_conv", f"{ours}/time_conv", "kernel", _in_time),
    ]


def _norm(theirs: str, ours: str, axes: int = 3) -> Rule:
    """The rule of a norm, whose weight [c, 1, ...] has further axes."""
    change = Change(lambda x: x.reshape(len(x)), lambda x: x.reshape(-1, *[1] * axes))
    return Rule(f"{theirs}.gamma", f"{ours}/scale", change)
