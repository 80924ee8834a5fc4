"""The VAE of CogVideoX in diffusers: its config.json and its keys in our names."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from dollar_jax.convert.tables import Rule, convolution_rules, layer_rules, norm_rules, pointwise
from dollar_jax.errors import UserError
from dollar_jax.models.cogvideox_vae import build
from dollar_jax.reading import require_schema

SIZES = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "latent_channels",
    "layers_per_block",
    "norm_eps",
    "norm_num_groups",
    "temporal_compression_ratio",
)
FIXED = {"act_fn": "silu", "use_quant_conv": False, "use_post_quant_conv": False}
# Settings that only our network has, at their values in the public one.
OURS = {"patch_size": (1, 1, 1), "exactly_causal": False, "encode_chunk": 8, "decode_chunk": 2}
_SCALE = {
    "required": ["scaling_factor"],
    "properties": {"scaling_factor": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6}},
}


def config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `models.cogvideox_vae.build`, from the content of diffusers' config.json.

    The rest of that file describes the latents' scale, see `scale`, and the stock pipeline.

    Raises:
      UserError: a size is missing, or the file asks for layers that the network does not have.
    """
    if missing := [name for name in SIZES if name not in theirs]:
        raise UserError(f"the VAE's config.json lacks {', '.join(missing)}: copy the file again")
    for name, value in FIXED.items():
        if theirs.get(name, value) != value:
            raise UserError(f"the VAE's config.json has {name} = {theirs[name]!r}: only {value!r} can be converted")
    return {name: theirs[name] for name in SIZES}


def their_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`.

    Raises:
      UserError: diffusers has no such network.
    """
    for name, public in OURS.items():
        value = config.get(name, public)
        if (tuple(value) if isinstance(value, list) else value) != public:
            raise UserError(f"the VAE has {name} = {value}, which diffusers does not know: there it is always {public}")
    defaults = {name: parameter.default for name, parameter in inspect.signature(build).parameters.items()}
    sizes = {name: config.get(name, defaults[name]) for name in SIZES}
    levels = len(sizes["block_out_channels"])
    return (
        sizes
        | FIXED
        | {
            "down_block_types": ["CogVideoXDownBlock3D"] * levels,
            "up_block_types": ["CogVideoXUpBlock3D"] * levels,
        }
    )


def scale(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`scaling_factor` of a card's VAE, by which latents are multiplied, from the content of diffusers' config.json.

    Raises:
      UserError: the file gives none.
    """
    require_schema(theirs, _SCALE, "the VAE's config.json", "it is the factor of the latents")
    return {"scaling_factor": theirs["scaling_factor"]}


def their_scale(part: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `scale`.

    Raises:
      UserError: the card's latents are shifted, or scaled by channel, which the stock pipeline does not undo.
    """
    if isinstance(part["scaling_factor"], list) or np.any(part.get("shift_factor", 0)):
        raise UserError("the VAE scales its latents by channel or shifts them: diffusers' pipeline has one factor only")
    return {"scaling_factor": part["scaling_factor"]}


def table(config: Mapping[str, Any]) -> list[Rule]:
    """The rules, the same for every config."""
    del config
    rules = []
    for side, direction in (("encoder", "down"), ("decoder", "up")):
        level = f"{side}.{direction}_blocks.{{level}}"
        rules += [
            *convolution_rules({f"{side}.{name}.conv": f"{side}/{name}" for name in ("conv_in", "conv_out")}),
            *convolution_rules({f"{level}.{direction}samplers.0.conv": f"{side}/levels/{{level}}/resample"}),
            *_norm(f"{side}.norm_out", f"{side}/norm_out"),
            *_blocks(f"{side}.mid_block", f"{side}/middle"),
            *_blocks(level, f"{side}/levels/{{level}}"),
        ]
    return rules


def _blocks(theirs: str, ours: str) -> list[Rule]:
    """The rules of one group of residual blocks."""
    theirs, ours = f"{theirs}.resnets.{{block}}", f"{ours}/blocks/{{block}}"
    return [
        *convolution_rules({f"{theirs}.{name}.conv": f"{ours}/{name}" for name in ("conv1", "conv2")}),
        *layer_rules(f"{theirs}.conv_shortcut", f"{ours}/shortcut", "kernel", pointwise(3)),
        *(rule for name in ("norm1", "norm2") for rule in _norm(f"{theirs}.{name}", f"{ours}/{name}")),
    ]


def _norm(theirs: str, ours: str) -> list[Rule]:
    """Norms are plain in the encoder and conditioned on the latents in the decoder."""
    return [
        *norm_rules({theirs: ours, f"{theirs}.norm_layer": f"{ours}/norm"}),
        *layer_rules(f"{theirs}.conv_y.conv", f"{ours}/scale", "kernel", pointwise(3)),
        *layer_rules(f"{theirs}.conv_b.conv", f"{ours}/shift", "kernel", pointwise(3)),
    ]
