"""Flow maps: transformers that are also told to which time a step leads, as in AnyFlow (arXiv 2605.13724).

With `gate_value` g in its config, a transformer embeds two times, (1 - g) e(t) + g d(t'); d has the shape of the time's
embedding e, and begins as a copy of it. So at t' = t a flow map begins as the network that it is made of.
"""

from collections.abc import Mapping
from typing import Any

from dollar_jax.errors import UserError
from dollar_jax.types import Params

GATE = 0.25  # AnyFlow's
COPIES = {"delta_expand": "time_expand", "delta_project": "time_project"}


def told_of_targets(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a transformer's flow map."""
    return {**config, "gate_value": GATE}


def without_targets(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the transformer that a flow map was made of."""
    return {name: value for name, value in config.items() if name != "gate_value"}


def is_flow_map(config: Mapping[str, Any]) -> bool:
    """Whether the transformer with this config is a flow map."""
    return config.get("gate_value") is not None


def with_targets(params: Params) -> Params:
    """The parameters with which a flow map of a transformer begins.

    Raises:
      UserError: the transformer has no embedding of the time with a name in `COPIES`.
    """
    copies = {name: params[source] for name, source in COPIES.items() if source in params}
    if not copies:
        layers = " and ".join(COPIES.values())
        raise UserError(f"generator.flow_map copies the teacher's embedding of the time, and it has no {layers}")
    return params | copies
