"""diffusers' AutoencoderKLCogVideoX: its config and its keys in our names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dollar_jax.convert.tables import Rule, convolution, linear, same
from dollar_jax.importing import UserError

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


def config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What `models.cogvideox_vae.build` takes, from the content of diffusers' config.json.

    The rest of that file describes the latents' scale and the stock pipeline.

    Raises:
      UserError: a size is missing, or the file asks for layers that the network does not have.
    """
    if missing := [name for name in SIZES if name not in theirs]:
        raise UserError(f"the VAE's config.json lacks {', '.join(missing)}: is it an AutoencoderKLCogVideoX?")
    for name, value in FIXED.items():
        if theirs.get(name, value) != value:
            raise UserError(f"the VAE's config.json has {name} = {theirs[name]!r}: only {value!r} can be converted")
    return {name: theirs[name] for name in SIZES}


def pointwise(x: np.ndarray) -> np.ndarray:
    """A convolution with a window of one, [out, in, 1, 1, 1] -> [in, out]."""
    return linear(x.reshape(x.shape[:2]))


def _level(theirs: str, ours: str) -> list[Rule]:
    """The rules of one group of residual blocks."""
    block, place = rf"{theirs}\.resnets\.(?P<block>\d+)\.", rf"{ours}/blocks/\g<block>/"
    return [
        (rf"{block}(?P<name>conv\d)\.conv\.weight", rf"{place}\g<name>/kernel", convolution),
        (rf"{block}(?P<name>conv\d)\.conv\.bias", rf"{place}\g<name>/bias", same),
        (rf"{block}conv_shortcut\.weight", rf"{place}shortcut/kernel", pointwise),
        (rf"{block}conv_shortcut\.bias", rf"{place}shortcut/bias", same),
        *_norm(rf"{block}(?P<name>norm\d)", rf"{place}\g<name>"),
    ]


def _norm(theirs: str, ours: str) -> list[Rule]:
    """Norms are plain in the encoder and conditioned on the latents in the decoder."""
    return [
        (rf"{theirs}\.weight", rf"{ours}/scale", same),
        (rf"{theirs}\.bias", rf"{ours}/bias", same),
        (rf"{theirs}\.norm_layer\.weight", rf"{ours}/norm/scale", same),
        (rf"{theirs}\.norm_layer\.bias", rf"{ours}/norm/bias", same),
        (rf"{theirs}\.conv_y\.conv\.weight", rf"{ours}/scale/kernel", pointwise),
        (rf"{theirs}\.conv_y\.conv\.bias", rf"{ours}/scale/bias", same),
        (rf"{theirs}\.conv_b\.conv\.weight", rf"{ours}/shift/kernel", pointwise),
        (rf"{theirs}\.conv_b\.conv\.bias", rf"{ours}/shift/bias", same),
    ]


SIDE = r"(?P<side>encoder|decoder)"
LEVEL = rf"{SIDE}\.(?:down|up)_blocks\.(?P<level>\d+)"
TABLE: list[Rule] = [
    (rf"{SIDE}\.(?P<name>conv_in|conv_out)\.conv\.weight", r"\g<side>/\g<name>/kernel", convolution),
    (rf"{SIDE}\.(?P<name>conv_in|conv_out)\.conv\.bias", r"\g<side>/\g<name>/bias", same),
    *_norm(rf"{SIDE}\.norm_out", r"\g<side>/norm_out"),
    *_level(rf"{SIDE}\.mid_block", r"\g<side>/middle"),
    *_level(LEVEL, r"\g<side>/levels/\g<level>"),
    (rf"{LEVEL}\.(?:down|up)samplers\.0\.conv\.weight", r"\g<side>/levels/\g<level>/resample/kernel", convolution),
    (rf"{LEVEL}\.(?:down|up)samplers\.0\.conv\.bias", r"\g<side>/levels/\g<level>/resample/bias", same),
]
