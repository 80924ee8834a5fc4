"""The transformer of AnyFlowPipeline in diffusers: Wan's, with a second embedding for the time that a step leads to."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dollar_jax.convert import wan_dit
from dollar_jax.convert.tables import Rule, linear_rules
from dollar_jax.models.wan_dit import Config

# Fields of Wan's config that this one does not have.
ABSENT = ("text_length", "qk_norm", "added_kv_proj_dim", "pos_embed_seq_len")


def table(config: Mapping[str, Any]) -> list[Rule]:
    """diffusers' rules for a network of `config`."""
    layers = {"linear_1": "delta_expand", "linear_2": "delta_project"}
    own = {f"condition_embedder.delta_embedder.{theirs}": ours for theirs, ours in layers.items()}
    return [*wan_dit.table(config), *linear_rules(own)]


def config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `models.wan_dit.build`: diffusers' config.json without its notes (`_class_name`, ...)."""
    own = {"gate_value", "deltatime_type"}
    second_time = {name: theirs[name] for name in own & theirs.keys()}
    return wan_dit.config({name: value for name, value in theirs.items() if name not in own}) | second_time


def their_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`."""
    return {name: value for name, value in dataclasses.asdict(Config(**config)).items() if name not in ABSENT}
