"""Our steps of VSD on the weights of diffusers' networks, and the random numbers that they draw."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict
from torch_steps import Draws, Family, Peer

from configs.dollar import get_config
from dollar_jax.config import named
from dollar_jax.convert.tables import convert
from dollar_jax.diffusion import make_schedule
from dollar_jax.models import build
from dollar_jax.models.network import Network, parameter_shapes
from dollar_jax.sampling import draw_times, fold, matched_times, normal
from dollar_jax.sharding import make_mesh
from dollar_jax.steps.common import example_keys
from dollar_jax.steps.distillation import Distillation
from dollar_jax.steps.iteration import compiled, parts
from dollar_jax.types import Condition, Params

TRAINED = {"generator": "student", "fake_score": "fake_score"}
LOSSES = {"generator": "variational_score", "fake_score": "fake_score"}
NO_REWARD = Network(lambda key: {}, lambda *inputs: None)


def recipe(family: Family) -> ConfigDict:
    """The paper's recipe with VSD alone, at the family's times and with the whole learning rate from the start."""
    config = get_config()
    config.generator.objectives = named(variational_score=config.generator.objectives.variational_score)
    config.generator.times = make_schedule(**family.schedule).spaced(4)
    config.generator.optimizer.warmup = config.fake_score.optimizer.warmup = 0
    return config


class Ours:
    """Our state and compiled steps.

    Attributes:
      setup: the fixed part.
      state: the `DollarState`; every update replaces it.
    """

    def __init__(
        self,
        family: Family,
        networks: dict[str, torch.nn.Module],
        config: ConfigDict,
        shape: tuple[int, ...],
        **options,
    ):
        """Copies the weights of networks from `torch_steps.random_networks`.

        Args:
          shape: shape of a video, [f h w c].
          **options: of `models.build`.
        """
        sizes = family.keys.config(dict(networks["teacher"].config))
        network, schedule = build(family.architecture, sizes, **options), make_schedule(**family.schedule)
        self.table, self.shapes = family.keys.table(sizes), parameter_shapes(network)
        self.setup = Distillation(network, NO_REWARD, family.prediction_type, schedule, config, shape, videos=False)
        teacher, student, fake_score = (
            self.params(networks[name].state_dict()) for name in ("teacher", "student", "fake_score")
        )
        self.teacher = jax.device_put(teacher)
        state = jax.jit(self.setup.init)(self.teacher, jax.random.key(0))
        state = state.replace(student=student, ema=jax.tree.map(np.copy, student), fake_score=fake_score)
        mesh = make_mesh(ConfigDict({"data": 1, "fsdp": 1, "context": 1}), jax.devices()[:1])
        self.state = jax.device_put(state, mesh.devices.item())
        self.parts = {part.name: part.step for part in compiled(parts(self.setup), self.state, mesh)}

    def params(self, tensors: dict[str, torch.Tensor]) -> Params:
        """Tensors by the names of diffusers' weights, as numpy arrays in our names and layout."""
        return convert(self.table, {key: tensor.detach().numpy() for key, tensor in tensors.items()}, self.shapes)

    def network(self, part: str) -> Params:
        """The network that a part trains."""
        return getattr(self.state, TRAINED[part])

    def update(self, part: str, text: Condition, key: jax.Array) -> dict:
        """Runs one step, 'generator' or 'fake_score'. Returns its metrics."""
        nothing = Condition(jnp.zeros_like(text.embedding[:1]), text.mask[:1])
        frozen = {"teacher": self.teacher, "negative": nothing, "empty": nothing}
        self.state, metrics = self.parts[part](self.state, frozen, {"condition": text}, key)
        return metrics

    def draws(self, part: str, key: jax.Array, size: int) -> Draws:
        """The random numbers that the next `update` draws from this key."""
        return jax.tree.map(np.asarray, jax.jit(partial(self._draws, part, size=size))(key, self.state.step))

    def _draws(self, part: str, key: jax.Array, step: jax.Array, size: int) -> Draws:
        generator, schedule, shape = self.setup.config.generator, self.setup.schedule, self.setup.latent_shape
        count, ordered = len(generator.times), jnp.asarray(sorted(generator.times, reverse=True), jnp.float32)
        keys = example_keys(key, step, size)
        rollout = fold(keys, 0)
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(fold(rollout, 0))
        span = matched_times(generator.matched_times, ordered[index], generator.times, schedule)
        if part == "generator":
            options, keys = generator.objectives["variational_score"], fold(keys, 1)
            times, eps = draw_times(fold(keys, 0), schedule, span, options.low, options.high), fold(keys, 1)
        else:
            times, eps = draw_times(fold(keys, 1), schedule, span), fold(keys, 2)
        again = jnp.stack([normal(fold(fold(rollout, 2), step), shape) for step in range(count - 1)])
        return Draws(normal(fold(rollout, 1), shape), again, index, times, normal(eps, shape))


def differences(
    part: str, ours: Ours, theirs: Peer, told: Condition, text: torch.Tensor, key: jax.Array
) -> dict[str, float]:
    """Relative differences between one update of both with the same random numbers, the first of this part.

    loss; gradient: Adam's first moment, which after one update is the clipped gradient times 1 - b1; update: the change
    of the weights; average: the student's average.
    """
    before, network = _flat(ours.network(part)), theirs.networks[TRAINED[part]]
    wanted = getattr(theirs, part)(text, ours.draws(part, key, len(text)))
    metrics = ours.update(part, told, key)
    adam, (_, (mine, *_)) = theirs.optimizers[TRAINED[part]].state, ours.state.optimizers[part]
    moments = {name: adam[parameter]["exp_avg"] for name, parameter in network.named_parameters()}
    average = theirs.networks["ema"].state_dict()
    pairs = {
        "loss": (np.array(metrics[f"loss/{LOSSES[part]}"]), np.array(wanted)),
        "gradient": (_flat(mine.mu), _flat(ours.params(network.state_dict() | moments))),
        "update": (_flat(ours.network(part)) - before, _flat(ours.params(network.state_dict())) - before),
        "average": (_flat(ours.state.ema), _flat(ours.params(average))),
    }
    return {name: float(np.linalg.norm(x - y) / np.linalg.norm(y)) for name, (x, y) in pairs.items()}


def _flat(params: Params) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
