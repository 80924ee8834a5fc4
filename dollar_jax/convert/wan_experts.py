"""The two transformers of Wan 2.2's A14B in diffusers: their config.json and their keys, each behind its folder's name.

`boundary` is not in config.json but in the pipeline's: see `families.wan`.
"""

from collections.abc import Mapping
from typing import Any

from dollar_jax.convert import wan_dit
from dollar_jax.convert.tables import Rule
from dollar_jax.convert.wan_dit import config

__all__ = ["config", "original_table", "table", "their_config"]

FOLDERS = {"transformer": "high", "transformer_2": "low"}


def their_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`, the same for both."""
    return wan_dit.their_config(_sizes(config))


def table(config: Mapping[str, Any]) -> list[Rule]:
    """The rules for both networks."""
    return _both(wan_dit.table(_sizes(config)))


def original_table(config: Mapping[str, Any]) -> list[Rule]:
    """The rules for files of both with the original names."""
    return _both(wan_dit.original_table(_sizes(config)))


def _both(rules: list[Rule]) -> list[Rule]:
    return [
        rule._replace(theirs=f"{folder}.{rule.theirs}", ours=f"{expert}/{rule.ours}")
        for folder, expert in FOLDERS.items()
        for rule in rules
    ]


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "boundary"}
