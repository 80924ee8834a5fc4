"""The transformer of Wan, in diffusers and in files with the names of the original code: its config and its keys in our
names.

In a file of bfloat16, diffusers leaves norms, modulation tables and the embedding of the time in float32. A parameter
of ours has the dtype of its tensors, so the way back writes what was read.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from dollar_jax.convert.tables import Change, Rule, linear_rules, norm_rules, same
from dollar_jax.convert.tensors import Tensors
from dollar_jax.errors import UserError
from dollar_jax.models.wan_dit import Config

OURS = ("text_length", "gate_value", "deltatime_type")  # fields that WanTransformer3DModel does not have
DEFAULTS = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}  # diffusers', where ours differ

# Attention layers and others: diffusers' names -> those of the original code, of LoRA files and of ComfyUI. The norms'
# numbers differ: norm3 of the original is the norm of cross-attention, and its norm2 has no parameters.
_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
ORIGINAL = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    **{f"blocks.{{layer}}.attn1.{name}": f"blocks.{{layer}}.self_attn.{old}" for name, old in _ATTENTION.items()},
    **{f"blocks.{{layer}}.attn2.{name}": f"blocks.{{layer}}.cross_attn.{old}" for name, old in _ATTENTION.items()},
    "blocks.{layer}.norm2": "blocks.{layer}.norm3",
    "blocks.{layer}.ffn.net.0.proj": "blocks.{layer}.ffn.0",
    "blocks.{layer}.ffn.net.2": "blocks.{layer}.ffn.2",
    "blocks.{layer}.scale_shift_table": "blocks.{layer}.modulation",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
COMFY = "model.diffusion_model."  # before every name in some files of ComfyUI
HEAD = 128  # width of a head in all public weights


def table(config: Mapping[str, Any]) -> list[Rule]:
    """diffusers' rules for a network of `config`."""
    window = Config(**config).patch_size
    # A convolution [out, in, r, p, q] <-> [in r p q, out].
    patches = Change(lambda x: x.reshape(len(x), -1).T, lambda x: x.T.reshape(-1, len(x) // math.prod(window), *window))
    rows = Change(lambda x: x.reshape(x.shape[1:]), lambda x: x[None])  # [1, rows, width] <-> [rows, width]
    attentions = {"attn1": "blocks/self_attention", "attn2": "blocks/cross_attention"}
    layers = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "project"}
    norms = {"norm_q": "query_norm", "norm_k": "key_norm"}
    return [
        Rule("patch_embedding.weight", "patch_embed/kernel", patches),
        Rule("patch_embedding.bias", "patch_embed/bias", same),
        Rule("blocks.{layer}.scale_shift_table", "blocks/modulation", rows),
        Rule("scale_shift_table", "modulation", rows),
        *linear_rules(
            {
                "condition_embedder.time_embedder.linear_1": "time_expand",
                "condition_embedder.time_embedder.linear_2": "time_project",
                "condition_embedder.time_proj": "time_modulation",
                "condition_embedder.text_embedder.linear_1": "text_expand",
                "condition_embedder.text_embedder.linear_2": "text_project",
                "blocks.{layer}.ffn.net.0.proj": "blocks/expand",
                "blocks.{layer}.ffn.net.2": "blocks/contract",
                "proj_out": "project",
            }
        ),
        *norm_rules({"blocks.{layer}.norm2": "blocks/cross_norm"}),
        *(
            rule
            for theirs, ours in attentions.items()
            for rule in (
                *linear_rules({f"blocks.{{layer}}.{theirs}.{x}": f"{ours}/{y}" for x, y in layers.items()}),
                *norm_rules({f"blocks.{{layer}}.{theirs}.{x}": f"{ours}/{y}" for x, y in norms.items()}),
            )
        ),
    ]


def config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `models.wan_dit.build`: diffusers' config.json without its notes (`_class_name`, ...).

    Raises:
      UserError: the file has a setting that the network does not have: it may be one for image-to-video.
    """
    ours = {name: value for name, value in theirs.items() if not name.startswith("_")}
    if unknown := ours.keys() - _their_fields():
        raise UserError(f"the transformer's config.json has {', '.join(sorted(unknown))}, which is not supported")
    sizes = Config(**DEFAULTS | ours)
    if sizes.in_channels != sizes.out_channels:
        raise UserError(
            f"the transformer takes {sizes.in_channels} channels and predicts {sizes.out_channels}: only text-to-video"
            " is supported, without an image or a mask beside the latents"
        )
    return dataclasses.asdict(sizes)


def their_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`."""
    return {name: value for name, value in dataclasses.asdict(Config(**config)).items() if name not in OURS}


def _their_fields() -> set[str]:
    return {field.name for field in dataclasses.fields(Config)} - set(OURS)


def original_table(config: Mapping[str, Any]) -> list[Rule]:
    """The rules for a file with the original names."""

    def renamed(key: str) -> str:
        layer, dot, parameter = key.rpartition(".")
        return ORIGINAL[key] if key in ORIGINAL else ORIGINAL[layer] + dot + parameter

    return [rule._replace(theirs=renamed(rule.theirs)) for rule in table(config)]


def original_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The arguments of `models.wan_dit.build`, from the shapes of the tensors in a file with the original names.

    They do not tell the width of a head, which is 128, nor eps, which is 1e-6.

    Raises:
      UserError: the tensors are not those of a Wan for text-to-video.
    """
    wanted = ("patch_embedding", "text_embedding.0", "time_embedding.0", "blocks.0.ffn.0", "head.head")
    if missing := [f"{name}.weight" for name in wanted if f"{name}.weight" not in shapes]:
        raise UserError(f"the file lacks {', '.join(missing)}: is it a transformer of Wan?")
    if "img_emb.proj.1.weight" in shapes:
        raise UserError("the file is a Wan for image-to-video: only text-to-video is supported")
    patch, text, time, expand, head = (shapes[f"{name}.weight"] for name in wanted)
    width, channels, *window = patch
    if width % HEAD:
        raise UserError(f"the transformer is {width} wide: only widths that divide into heads of {HEAD} are known")
    return config(
        {
            "patch_size": window,
            "num_attention_heads": width // HEAD,
            "attention_head_dim": HEAD,
            "in_channels": channels,
            "out_channels": head[0] // math.prod(window),
            "text_dim": text[1],
            "freq_dim": time[1],
            "ffn_dim": expand[0],
            "num_layers": sum(re.fullmatch(r"blocks\.\d+\.ffn\.0\.weight", key) is not None for key in shapes),
        }
    )


def without_prefix(tensors: Tensors) -> Tensors:
    """The tensors of a file of ComfyUI by their original names."""
    return Tensors({key.removeprefix(COMFY): tensor for key, tensor in tensors.lazy.items()}, tensors.nbytes)
