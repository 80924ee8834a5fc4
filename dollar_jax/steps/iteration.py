"""One iteration of Alg. 1 as a list of parts: the training loop runs it, the planner compiles it.

| part | step | how often | batch |
|---|---|---|---|
| generator | student and its average, Eq. 16 | once | data; for a policy gradient with a scored trajectory |
| fake_score | fake score, Eq. 4 | `fake_score.updates`, in so many `rollouts` | new data each time, as in DMD2 |
| NAME_own | own network of the objective NAME | its `updates` | the generator's |
| reward | latent reward model, Eq. 14 | once, if `concurrent` | clips and samples with their true reward |
| finetune | student, on the latent reward alone (Alg. 1, line 19) | once, if `separate` | the generator's |
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax.errors import UserError
from dollar_jax.sharding import batch_sharding, compile_step
from dollar_jax.steps import dollar
from dollar_jax.steps.distillation import TUNING, Distillation, DollarState, own_name
from dollar_jax.steps.reward import make_reward_step
from dollar_jax.types import Key

REWARD = "reward"  # the part that trains the latent reward model
PROPOSALS = 2  # number of the key stream of every `Part.propose`


@dataclass(frozen=True)
class Part:
    """A step of an iteration.

    Attributes:
      name: see the module's table.
      step: (state, frozen, batch, key) -> (state, metrics).
      stream: number of its stream of random keys.
      times: number of runs in an iteration.
      batch: "generator": the generator's batch; "fresh": a new batch for each run; "few": `reward.batch_size` rows of
        the generator's batch.
      propose: (state, frozen, batch, key) -> the step's batch with latents 'scored', which the caller decodes and
        scores with the true reward before the step. None: the step takes the batch as it is.
      group: number of neighbouring rows of 'scored' that are of the first one's caption.
      prepared: whether the batch needs the captions prepared by a differentiable reward.
    """

    name: str
    step: Callable
    stream: int
    times: int = 1
    batch: Literal["generator", "fresh", "few"] = "generator"
    propose: Callable | None = None
    group: int = 1
    prepared: bool = False

    def key(self, key: Key, number: int, index: int = 0, stream: int | None = None) -> Key:
        """The key of run `index` of this part in iteration `number`.

        Steps fold in `state.step`. It does not change while the reward model is trained alone, so the reward model's
        key folds in the number.
        """
        key = jax.random.fold_in(key, (self.stream if stream is None else stream) + index)
        return jax.random.fold_in(key, number) if self.name == REWARD else key


def parts(setup: Distillation) -> list[Part]:
    """The parts of an iteration in their order, not compiled."""
    config, needs = setup.config, setup.needs
    learns = "reward_model" in needs
    names = [objective.name for objective in setup.objectives if not (setup.separate and objective.name == TUNING)]
    found = [
        Part(
            "generator",
            dollar.make_generator_step(setup, names),
            stream=1,
            propose=dollar.make_trajectory(setup) if "trajectory" in needs else None,
            group=setup.group,
            prepared="pixel_reward" in needs,
        )
    ]
    if "fake_score" in needs:
        step = dollar.make_fake_score_step(setup)
        found.append(Part("fake_score", step, stream=3, times=rollouts(config), batch="fresh"))
    for index, objective in enumerate(objective for objective in setup.objectives if objective.own):
        step, times = dollar.make_own_step(setup, objective), objective.settings.get("updates", 1)
        found.append(Part(own_name(objective), step, stream=(index + 1) << 16, times=times))
    if learns and (config.reward.concurrent or config.reward.pretrain):
        step = make_reward_step(setup.reward_network, setup.optimizer("reward"), setup.videos)
        found.append(Part(REWARD, step, stream=PROPOSALS, batch="few", propose=dollar.make_proposal(setup)))
    if setup.separate:
        found.append(Part("finetune", dollar.make_generator_step(setup, [TUNING]), stream=1))
    return found


def due(iteration: list[Part], setup: Distillation, number: int) -> list[Part]:
    """The parts that iteration `number` runs.

    The first `reward.pretrain` iterations run the reward model's part alone; later ones run it if `reward.concurrent`.
    """
    reward = setup.config.reward
    if number < reward.pretrain:
        return [part for part in iteration if part.name == REWARD]
    return [part for part in iteration if part.name != REWARD or reward.concurrent]


def compiled(iteration: list[Part], state: DollarState, mesh: Mesh) -> list[Part]:
    """The parts with their functions jitted, each once; `state` may be abstract."""
    spread = batch_sharding(mesh)
    return [
        replace(
            part,
            step=compile_step(part.step, state, mesh),
            propose=part.propose and jax.jit(part.propose, out_shardings=spread),
        )
        for part in iteration
    ]


def batches_drawn(config: ConfigDict, needs: Collection[str]) -> int:
    """Number of batches of data in an iteration: one for the generator, and one for each of the `rollouts`."""
    return 1 + (rollouts(config) if "fake_score" in needs else 0)


def rollouts(config: ConfigDict) -> int:
    """Number of runs of the fake score's step in an iteration; each makes `fake_score.updates_per_rollout` updates.

    Raises:
      UserError: that number does not divide `fake_score.updates`, or there is no simulated chain to share.
    """
    updates, shared = config.fake_score.updates, config.fake_score.updates_per_rollout
    if updates % shared:
        raise UserError(f"fake_score.updates_per_rollout={shared} does not divide fake_score.updates={updates}")
    if shared > 1 and (config.generator.rollout != "simulate" or config.generator.flow_map):
        raise UserError(
            f"fake_score.updates_per_rollout={shared} needs generator.rollout=simulate without flow_map: set it to 1"
        )
    return updates // shared


def describe(iteration: list[Part]) -> str:
    """One line with the names of the parts and their numbers of runs."""
    return ", ".join(f"{part.name} x {part.times}" if part.times > 1 else part.name for part in iteration)
