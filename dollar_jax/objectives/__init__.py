"""What the student is trained for: one file an objective.

Each has its equation as a pure function of arrays that returns [b], and under it a function of a `Context`, named like
the file, that runs the networks to feed it. A config lists the second by name, or as `module:function` from outside the
package, with its weight and its options.

An objective's attribute `needs` says what an iteration has to do for it beside running it:

fake_score    train the fake score on the student's samples (also where the attribute is absent)
reward_model  train the latent reward model
trajectory    draw a chain of the student's and score where it ends
pixel_reward  prepare a differentiable reward, and the decoder

Its attribute `own`, an `Own`, declares a network that the objective brings along, a discriminator for example.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dollar_jax.errors import UserError
from dollar_jax.importing import resolve

PACKAGE = __name__


@dataclass(frozen=True)
class Own:
    """A network that an objective brings along, trained beside the student and kept in the same state.

    Attributes:
      build: (latents, condition, **config) -> Network. The first two are ShapeDtypeStructs of one example, b = 1.
      loss: (context, **options) -> ([b], metrics), like an objective's: `context.own` is the network in training, the
        student is frozen.
    """

    build: Callable
    loss: Callable


class Objective(NamedTuple):
    """An objective of a config.

    Attributes:
      name: in the config and in the log.
      weight: of its loss in the generator's.
      function: (context) -> ([b], metrics), its options bound.
      needs: what an iteration has to do for it, see the package's docstring.
      own: its own network, None for most.
      settings: of that network, see `own_settings`.
    """

    name: str
    weight: float
    function: Callable
    needs: frozenset[str]
    own: Own | None
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The name of its own network's parameters in a state: the function's."""
        return self.name.rpartition(":")[2]


RESERVED = ("weight", "own")  # of an objective's fields; the others are options of its function


def used(generator: ConfigDict) -> list[Objective]:
    """The objectives of a config that have a weight, in their order.

    Each stands in `generator.objectives` under its name: `weight`, the options of its function, and for one with a
    network of its own `own`: {network: the config of `Own.build`, options: of `Own.loss`, optimizer: like the fake
    score's, updates: of an iteration, ema: the decay of an average, 0 for none}.

    Raises:
      UserError: there is no such objective, or two own networks share a name.
    """
    found = []
    for name, fields in generator.objectives.items():
        if fields.weight:
            function = resolve(name, PACKAGE)
            options = {option: value for option, value in fields.items() if option not in RESERVED}
            try:
                inspect.signature(function).bind(None, **options)
            except TypeError as error:
                raise UserError(f"objective {name}: {error}; its options are in its signature") from error
            needs = frozenset(getattr(function, "needs", ("fake_score",)))
            own, settings = getattr(function, "own", None), fields.get("own", ConfigDict())
            if settings and own is None:
                raise UserError(f"objective {name} has no network of its own: remove objectives.{name}.own")
            found.append(Objective(name, fields.weight, partial(function, **options), needs, own, settings))
    keys = [objective.key for objective in found if objective.own]
    if len(set(keys)) < len(keys):
        raise UserError(f"two objectives with networks of their own share a name: {', '.join(keys)}")
    return found


def needs_of(objectives: list[Objective]) -> set[str]:
    """All that an iteration has to do for these objectives."""
    return {need for objective in objectives for need in objective.needs}
