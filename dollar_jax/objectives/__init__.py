"""Objectives, the losses of the student: one file each.

A file has the equation as a pure function of arrays that returns [b], and an objective of the same name as the file: a
function of a `Context` that runs the networks and calls the equation. A config lists objectives by name, or as
`module:function` from outside the package, with weight and options.

The attribute `needs` of an objective lists what it needs beside captions, and the other work that an iteration does
for it:

- `videos`: latents of the data; without them `context.latents` is None
- `fake_score`: train the fake score on samples of the student (the default if the attribute is absent)
- `reward_model`: train the latent reward model
- `trajectory`: sample a chain of the student and score its end
- `pixel_reward`: prepare a differentiable reward and the decoder
- `start`: keep the student of the run's start, frozen
- `forward_mode`: build the student once more with an attention that has a forward-mode derivative

The attribute `own`, an `Own`, declares a network that belongs to the objective, for example a discriminator.
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
REWARDED = {"reward_model", "trajectory", "pixel_reward"}  # the needs that include a reward


@dataclass(frozen=True)
class Own:
    """A network that belongs to an objective: trained beside the student, and part of the same state.

    Attributes:
      build: (latents, condition, **config) -> Network; `latents` and `condition` are ShapeDtypeStructs with b = 1.
        With `reads_features` it is (latents, condition, features, **config); `features` maps a list of depths to the
        shapes of `Context.features`.
      loss: (context, **options) -> ([b], metrics), the loss of this network. `context.own` is the network in training,
        the student is frozen.
      reads_features: whether the network reads features of the fake score.
    """

    build: Callable
    loss: Callable
    reads_features: bool = False


class Objective(NamedTuple):
    """An objective of a config.

    Attributes:
      name: its name in the config and in the log.
      weight: weight of its loss in the generator's loss.
      function: (context) -> ([b], metrics), with its options bound.
      needs: other work of an iteration, see the package's docstring.
      own: its own network, None for most objectives.
      settings: config of that network, see `used`.
    """

    name: str
    weight: float
    function: Callable
    needs: frozenset[str]
    own: Own | None
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Key of its own network's parameters in a state: the name of the function."""
        return self.name.rpartition(":")[2]


RESERVED = ("weight", "own")  # fields of an objective that are not options of its function


def used(generator: ConfigDict) -> list[Objective]:
    """The objectives of a config with a weight that is not 0.

    They are sorted by name, so that their order in a config changes no random draw.

    Args:
      generator: `objectives` maps a name to {weight, options of the function, own}. `own` configures the network of
        the objective: {network: config of `Own.build`, options: of `Own.loss`, optimizer: by default the fake score's,
        updates: number per iteration, ema: decay of its average, 0 for none}.

    Raises:
      UserError: an objective does not exist, does not take its options or has no network to configure; or two networks
        share a name.
    """
    found = []
    for name, fields in sorted(generator.objectives.items()):
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


def group_of(objectives: list[Objective]) -> int:
    """Number of trajectories of each caption, the option `group` of an objective with trajectories; 1 by default."""
    options = [objective.function.keywords for objective in objectives if "trajectory" in objective.needs]
    return max([1, *(kept.get("group", 1) for kept in options)])


def needs_of(objectives: list[Objective]) -> set[str]:
    """The union of `needs` of these objectives."""
    return {need for objective in objectives for need in objective.needs}
