"""The encoder of umT5 in transformers: T5's config.json, and its keys with numbers for distances in each block."""

from collections.abc import Mapping
from typing import Any

from dollar_jax.convert import t5
from dollar_jax.convert.t5 import config
from dollar_jax.convert.tables import STACKED, Rule

__all__ = ["config", "table", "their_config"]


def table(config: Mapping[str, Any]) -> list[Rule]:
    """The rules, the same for every config."""
    del config
    return t5.rules(STACKED)


def their_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`."""
    return t5.their_config(config) | {"model_type": "umt5"}
