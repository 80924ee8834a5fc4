"""transformers' CLIPModel and open_clip's ViTs: their configs and their keys in our names."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dollar_jax.convert.tables import Change, Rule, linear_rules, norm_rules, same
from dollar_jax.convert.tensors import Tensors
from dollar_jax.errors import UserError
from dollar_jax.models.clip import Config, Text, Vision, read

# 0, 1, 2, ... in the files of older versions of transformers.
IGNORED = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}  # of open_clip's vision towers H, g and bigG; all others have 64
PARTS = ("query", "key", "value")  # of open_clip's fused projections, in their order


def table(config: Mapping[str, Any]) -> list[Rule]:
    """transformers' rules for a network of `config`."""
    layers = {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "project": "self_attn.out_proj",
        "expand": "mlp.fc1",
        "contract": "mlp.fc2",
    }
    norms = {"attention_norm": "layer_norm1", "mlp_norm": "layer_norm2"}
    return [
        Rule("vision_model.embeddings.class_embedding", "vision/class_token", same),
        Rule("vision_model.embeddings.patch_embedding.weight", "vision/patch_embed/kernel", _patches(config)),
        Rule("vision_model.embeddings.position_embedding.weight", "vision/positions", same),
        Rule("text_model.embeddings.token_embedding.weight", "text/embed/embedding", same),
        Rule("text_model.embeddings.position_embedding.weight", "text/positions", same),
        Rule("logit_scale", "logit_scale", same),
        *linear_rules({"visual_projection": "vision/project", "text_projection": "text/project"}),
        *norm_rules(
            {
                "vision_model.pre_layrnorm": "vision/embed_norm",
                "vision_model.post_layernorm": "vision/norm",
                "text_model.final_layer_norm": "text/norm",
            }
        ),
        *_block_rules("vision_model.encoder.layers.{layer}", "vision/blocks", layers, norms),
        *_block_rules("text_model.encoder.layers.{layer}", "text/blocks", layers, norms),
    ]


def open_clip_table(config: Mapping[str, Any]) -> list[Rule]:
    """open_clip's rules for a network of `config`, and for tensors from `split_fused`."""
    layers = {name: f"attn.{name}" for name in PARTS}
    layers |= {"project": "attn.out_proj", "expand": "mlp.c_fc", "contract": "mlp.c_proj"}
    norms = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
    return [
        Rule("visual.class_embedding", "vision/class_token", same),
        Rule("visual.conv1.weight", "vision/patch_embed/kernel", _patches(config)),
        Rule("visual.positional_embedding", "vision/positions", same),
        Rule("visual.proj", "vision/project/kernel", same),  # [in, out] already
        Rule("token_embedding.weight", "text/embed/embedding", same),
        Rule("positional_embedding", "text/positions", same),
        Rule("text_projection", "text/project/kernel", same),
        Rule("logit_scale", "logit_scale", same),
        *norm_rules({"visual.ln_pre": "vision/embed_norm", "visual.ln_post": "vision/norm", "ln_final": "text/norm"}),
        *_block_rules("visual.transformer.resblocks.{layer}", "vision/blocks", layers, norms),
        *_block_rules("transformer.resblocks.{layer}", "text/blocks", layers, norms),
    ]


def _block_rules(theirs: str, ours: str, layers: Mapping[str, str], norms: Mapping[str, str]) -> list[Rule]:
    """The rules of a tower's blocks."""
    return [
        *linear_rules({f"{theirs}.{module}": f"{ours}/{name}" for name, module in layers.items()}),
        *norm_rules({f"{theirs}.{module}": f"{ours}/{name}" for name, module in norms.items()}),
    ]


def _patches(config: Mapping[str, Any]) -> Change:
    """A convolution [out, 3, p, p] <-> a matrix over flat patches [3 p p, out]."""
    patch = read(config).vision_config.patch_size
    return Change(lambda x: x.reshape(len(x), -1).T, lambda x: x.T.reshape(-1, 3, patch, patch))


def split_fused(tensors: Tensors) -> Tensors:
    """open_clip's tensors with queries, keys and values apart: `attn.in_proj_weight` -> `attn.query.weight`, ..."""
    split = {}
    for key, tensor in tensors.lazy.items():
        module, fused, kind = key.rpartition("in_proj_")
        if not fused:
            split[key] = tensor
            continue
        for part, name in enumerate(PARTS):
            split[f"{module}{name}.{kind}"] = tensor.through(lambda fused, part=part: np.split(fused, 3)[part])
    return Tensors(split, tensors.nbytes)


def config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `models.clip.build`, from transformers' config.json, which may leave out defaults.

    Raises:
      UserError: the file describes another model, or a setting that the network does not have.
    """
    towers = {"vision_config": Vision, "text_config": Text}
    if missing := [name for name in towers if name not in theirs]:
        raise UserError(f"CLIP's config.json lacks {', '.join(missing)}: is it a CLIPModel?")
    # Where an old file has text_config_dict too, transformers takes that and no field of text_config.
    old = {name: theirs.get(f"{name}_dict") for name in towers}
    given = {name: theirs[name] if old[name] is None else old[name] for name in towers}
    sizes = {
        name: {field.name: given[name][field.name] for field in dataclasses.fields(kind) if field.name in given[name]}
        for name, kind in towers.items()
    }
    features = theirs.get("projection_dim", Config.projection_dim)
    ours = dataclasses.asdict(read(sizes | {"projection_dim": features}))
    channels, end = given["vision_config"].get("num_channels", 3), given["text_config"].get("eos_token_id", 49407)
    if channels != 3:
        raise UserError(f"CLIP's config.json has num_channels = {channels!r}: only 3 is supported")
    # In old files it is wrongly 2, and transformers then takes the largest id, as we always do.
    last = ours["text_config"]["vocab_size"] - 1
    if end not in (2, last):
        raise UserError(f"CLIP's config.json has eos_token_id = {end!r}: only the last token, {last}, is supported")
    return ours


def their_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`."""
    ours = dataclasses.asdict(read(config))
    ours["text_config"]["eos_token_id"] = ours["text_config"]["vocab_size"] - 1
    return {"model_type": "clip"} | ours


def open_clip_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The arguments of `models.clip.build`, from the shapes of a file's tensors.

    They do not tell the heads, which follow from the width, nor the activation, which is exact in open_clip's own
    weights. OpenAI's weights have another, but their files hold tensors that no rule fits.

    Raises:
      UserError: the tensors are not those of a ViT of open_clip.
    """
    wanted = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")
    wanted += ("token_embedding.weight", "positional_embedding")
    wanted += tuple(f"{tower}transformer.resblocks.0.mlp.c_fc.weight" for tower in ("visual.", ""))
    if missing := [key for key in wanted if key not in shapes]:
        raise UserError(f"the file lacks {', '.join(missing)}: is it a ViT of open_clip?")

    def tower(blocks: str, head_widths: Mapping[int, int]) -> dict[str, Any]:
        expanded, width = shapes[f"{blocks}.0.mlp.c_fc.weight"]
        head = head_widths.get(width, 64)
        if width % head:
            raise UserError(f"{blocks} is {width} wide: only widths that divide into heads of {head} are known")
        layers = sum(re.fullmatch(rf"{re.escape(blocks)}\.\d+\.mlp\.c_fc\.weight", key) is not None for key in shapes)
        return {
            "hidden_size": width,
            "intermediate_size": expanded,
            "num_hidden_layers": layers,
            "num_attention_heads": width // head,
            "hidden_act": "gelu",
        }

    patch = shapes["visual.conv1.weight"][2]
    side = math.isqrt(shapes["visual.positional_embedding"][0] - 1)
    vocabulary, length = (shapes[key][0] for key in ("token_embedding.weight", "positional_embedding"))
    vision = {"image_size": side * patch, "patch_size": patch} | tower("visual.transformer.resblocks", HEAD_WIDTHS)
    text = {"vocab_size": vocabulary, "max_position_embeddings": length} | tower("transformer.resblocks", {})
    sizes = {"vision_config": vision, "text_config": text, "projection_dim": shapes["visual.proj"][1]}
    return dataclasses.asdict(read(sizes))
