"""The transformer of CogVideoX in diffusers: its config.json and its keys in our names."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dollar_jax.convert.tables import Change, Rule, linear_rules, norm_rules, same
from dollar_jax.errors import UserError
from dollar_jax.models.cogvideox_dit import Config
from dollar_jax.models.flow_map import without_targets


def table(config: Mapping[str, Any]) -> list[Rule]:
    """The rules for a network of `config`."""
    sizes = Config(**config)
    window = (sizes.patch_size,) * 2 if sizes.patch_size_t is None else ()
    # A convolution [out, in, p, p] (1.0) or a matrix over flat patches [out, in r p p] (1.5) <-> [in r p p, out].
    patches = Change(lambda x: x.reshape(len(x), -1).T, lambda x: x.T.reshape(-1, len(x) // math.prod(window), *window))
    return [
        Rule("patch_embed.proj.weight", "patch_embed/kernel", patches),
        Rule("patch_embed.proj.bias", "patch_embed/bias", same),
        Rule("patch_embed.pos_embedding", "positions", same),
        *linear_rules(
            {
                "patch_embed.text_proj": "text_embed",
                "time_embedding.linear_1": "time_expand",
                "time_embedding.linear_2": "time_project",
                "transformer_blocks.{layer}.norm1.linear": "blocks/attention_norm/modulation",
                "transformer_blocks.{layer}.attn1.to_q": "blocks/attention/query",
                "transformer_blocks.{layer}.attn1.to_k": "blocks/attention/key",
                "transformer_blocks.{layer}.attn1.to_v": "blocks/attention/value",
                "transformer_blocks.{layer}.attn1.to_out.0": "blocks/attention/project",
                "transformer_blocks.{layer}.norm2.linear": "blocks/mlp_norm/modulation",
                "transformer_blocks.{layer}.ff.net.0.proj": "blocks/expand",
                "transformer_blocks.{layer}.ff.net.2": "blocks/contract",
                "norm_out.linear": "project_modulation",
                "proj_out": "project",
            }
        ),
        *norm_rules(
            {
                "transformer_blocks.{layer}.norm1.norm": "blocks/attention_norm/norm",
                "transformer_blocks.{layer}.attn1.norm_q": "blocks/attention/query_norm",
                "transformer_blocks.{layer}.attn1.norm_k": "blocks/attention/key_norm",
                "transformer_blocks.{layer}.norm2.norm": "blocks/mlp_norm/norm",
                "norm_final": "norm",
                "norm_out.norm": "project_norm",
            }
        ),
    ]


def config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `models.cogvideox_dit.build`: diffusers' config.json without its notes (`_class_name`, ...).

    Raises:
      UserError: the file has a setting that the network does not have.
    """
    ours = {name: value for name, value in theirs.items() if not name.startswith("_")}
    known = {field.name for field in dataclasses.fields(Config)} - {"gate_value"}
    if unknown := ours.keys() - known:
        raise UserError(f"the transformer's config.json has {', '.join(sorted(unknown))}, which is not supported")
    return dataclasses.asdict(Config(**ours))


def their_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`."""
    return without_targets(dataclasses.asdict(Config(**config)))
