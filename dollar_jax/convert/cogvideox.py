"""diffusers' CogVideoXTransformer3DModel: its config and its keys in our names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dollar_jax.convert.tables import Rule, linear_rules, norm_rules, same


def patch_kernel(x: np.ndarray) -> np.ndarray:
    """A convolution [out, in, p, p] (1.0) or a matrix over flat patches [out, in r p p] (1.5) -> [in r p p, out]."""
    return x.reshape(len(x), -1).T


TABLE: list[Rule] = [
    (r"patch_embed\.proj\.weight", "patch_embed/kernel", patch_kernel),
    (r"patch_embed\.proj\.bias", "patch_embed/bias", same),
    (r"patch_embed\.pos_embedding", "positions", same),
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
    """What `models.cogvideox_dit.build` takes, from the content of diffusers' config.json: all but its own notes."""
    return {name: value for name, value in theirs.items() if not name.startswith("_")}
