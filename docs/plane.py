"""A world of points in the plane, in which a distillation takes seconds: data, networks, training and drawing.

The data are a mixture of Gaussians, whose denoiser is known exactly. A point is a video of one frame with one pixel and
two channels, latents [b 1 1 1 2], so the rest of the package takes it as it is. `docs/tour.ipynb` and
`python -m docs.figures` consist of these parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from configs import shapes
from dollar_jax import diffusion
from dollar_jax.config import Fields, optimizer, set_named, stage
from dollar_jax.models.network import Network, from_module
from dollar_jax.sampling import Denoiser, Keys, fold, normal, sample
from dollar_jax.steps import teacher as pretraining
from dollar_jax.steps.common import init_state
from dollar_jax.steps.distillation import Distillation, DollarState
from dollar_jax.steps.iteration import parts
from dollar_jax.types import Condition, Latent, Params, PerExample, Times

LATENT_SHAPE = 1, 1, 1, 2
SCHEDULE = diffusion.ddpm_schedule()
PREDICTION_TYPE = "conjugate"
WIDTH, FREQUENCIES = 64, 4
BATCH_SIZE = 128
Points = Float[np.ndarray, "n 2"]


def no_caption(count: int) -> Condition:
    """The condition of `count` points: nothing."""
    return Condition(jnp.zeros((count, 1, 1)), jnp.ones((count, 1), bool))


NO_CAPTION = no_caption(1)


@dataclass(frozen=True)
class Mixture:
    """Gaussians around `centres`, equally likely, with the same standard deviation in both directions."""

    centres: Float[np.ndarray, "k 2"]
    deviation: float

    def sample(self, keys: Keys) -> Latent:
        """Draws one point for each key."""
        chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(self.centres)))(fold(keys, 0))
        return jnp.asarray(self.centres)[chosen][:, None, None, None] + self.deviation * normal(
            fold(keys, 1), LATENT_SHAPE
        )

    def denoise(self, x_t: Latent, times: Times, condition: Condition) -> tuple[Latent, Latent]:
        """The exact denoiser, the means of x0 and eps given x_t.

        If the point is of the Gaussian around c, x_t is normal around a c with variance a^2 d^2 + b^2 for deviation d,
        and the mean of x0 is c + a d^2 / (a^2 d^2 + b^2) (x_t - a c). The answer is the mean of these over the
        Gaussians, weighted by how likely each of them is given x_t.
        """
        a, b = SCHEDULE.at(times)
        variance = (a * self.deviation) ** 2 + b**2
        away = x_t[..., None, :] - a[..., None] * jnp.asarray(self.centres)[None, None, None, None]
        share = jax.nn.softmax(-(away**2).sum(-1) / (2 * variance), axis=-1)[..., None]
        x0 = self.centres[None, None, None, None] + (a * self.deviation**2 / variance)[..., None] * away
        x0 = (share * x0).sum(-2)
        return x0, (x_t - a * x0) / b


_ANGLES = 2 * np.pi * (np.arange(5) + 0.25) / 5
WORLD = Mixture(1.4 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1).astype(np.float32), deviation=0.15)

STAR = np.array([2.0, -0.3], np.float32)  # outside of all circles of the data


class Perceptron(nnx.Module):
    """Four layers, [b inputs] -> [b outputs]."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.first, self.last = nnx.Linear(inputs, WIDTH, rngs=rngs), nnx.Linear(WIDTH, outputs, rngs=rngs)
        self.second, self.third = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        for layer in (self.first, self.second, self.third):
            x = nnx.silu(layer(x))
        return self.last(x)


def transformer() -> Network:
    """The network of teacher, student and fake score: a perceptron on the point, and sines and cosines of the time."""
    perceptron = from_module(lambda rngs: Perceptron(2 + 2 * FREQUENCIES, 2, rngs))

    def apply(params, latents, times, condition):
        angles = times[:, None] / 1000 * jnp.pi * 2.0 ** jnp.arange(FREQUENCIES)[None]
        told = jnp.concatenate([latents[:, 0, 0, 0], jnp.sin(angles), jnp.cos(angles)], axis=1)
        return perceptron.apply(params, told)[:, None, None, None]

    return Network(perceptron.init, apply)


def reward_model() -> Network:
    """The latent reward model: a perceptron on the point."""
    perceptron = from_module(lambda rngs: Perceptron(2, 1, rngs))
    return Network(perceptron.init, lambda params, x, condition: perceptron.apply(params, x[:, 0, 0, 0])[:, 0])


def batch(key: Key[Array, ""], size: int) -> dict:
    """A batch of data, as the steps want it: {'latents', 'condition'}."""
    return {"latents": WORLD.sample(jax.random.split(key, size)), "condition": no_caption(size)}


def pretrain(network: Network, iterations: int) -> Params:
    """Trains a teacher by Eq. 4. Returns the average of its parameters."""
    size = 2 * BATCH_SIZE
    config = stage(iterations, size, ema=0.999, caption_dropout=0.0, optimizer=optimizer(2e-3))
    step, key = pretraining.make_step(network, PREDICTION_TYPE, SCHEDULE, config), jax.random.key(0)

    def update(number, state):
        return step(state, {"empty": NO_CAPTION}, batch(jax.random.fold_in(key, number), size), key)[0]

    return jax.jit(lambda state: lax.fori_loop(0, iterations, update, state))(init_state(network, config, key)).ema


def recipe(network: Network, objectives: Mapping[str, Fields], steps: int, iterations: int) -> Distillation:
    """The fixed part of a distillation: configs/shapes.py with these objectives, for a student of so many steps."""
    config = shapes.get_config()
    none = dict.fromkeys(config.generator.objectives, 0.0)
    set_named(config.generator.objectives, none | dict(objectives))
    config.generator.update({"iterations": iterations, "times": SCHEDULE.spaced(steps)})
    # The networks are small: they learn at ten times the learning rates of the shapes world.
    config.generator.optimizer.learning_rate, config.fake_score.optimizer.learning_rate = 1e-3, 2e-3
    return Distillation(network, reward_model(), PREDICTION_TYPE, SCHEDULE, config, LATENT_SHAPE)


def distill(
    setup: Distillation, teacher: Params, start: DollarState | None = None, snapshots: int = 1
) -> list[DollarState]:
    """Trains a student by the parts of an iteration, as `dollar_jax.stages.distill` does.

    Args:
      start: the end of another distillation, whose student and fake score this one begins with; None: the teacher.
      snapshots: number of states to return, at equal distances, the last one at the end.
    """
    frozen = {"teacher": teacher, "negative": NO_CAPTION, "empty": NO_CAPTION}
    key, iteration = jax.random.key(0), parts(setup)
    state = setup.init(teacher, key)
    if start is not None:
        state = state.replace(student=start.student, ema=start.ema, fake_score=start.fake_score)

    def iterate(number, state):
        for part in iteration:

            def update(index, state, part=part):
                run_key = jax.random.fold_in(jax.random.fold_in(key, number), part.stream + index)
                data_key, propose_key, step_key = jax.random.split(run_key, 3)
                rows = batch(data_key, BATCH_SIZE)
                if part.propose:
                    rows = part.propose(state, frozen, rows, propose_key)
                    rows["reward"] = reward(rows.pop("scored"))
                return part.step(state, frozen, rows, step_key)[0]

            state = lax.fori_loop(0, part.times, update, state)
        return state

    run = _quickly(lambda state, first, end: lax.fori_loop(first, end, iterate, state))
    state = jax.device_put(state, jax.devices()[0])  # as a step returns it, so that `run` is compiled once
    states, ends = [], np.linspace(0, setup.config.generator.iterations, snapshots + 1).round().astype(int)
    for first, end in pairwise(ends):
        state = run(state, first, end)
        states.append(state)
    return states


def draw(denoise: Denoiser, steps: int, count: int = 1000) -> Points:
    """Samples points with so many steps of DDIM."""
    return draws(lambda params: denoise, [{}], steps, count)[0]


def draws(make: Callable[[Params], Denoiser], versions: Sequence[Params], steps: int, count: int) -> list[Points]:
    """Samples points with each version of a network's parameters, from the same noise; `make` is compiled once."""
    keys, times = jax.random.split(jax.random.key(0), count), SCHEDULE.spaced(steps)
    noise, condition = normal(keys, LATENT_SHAPE), no_caption(count)
    run = _quickly(lambda params: sample(make(params), noise, condition, times, SCHEDULE, "ddim", keys))
    return [points(run(params)) for params in versions]


def reward(latents: Latent) -> PerExample:
    """The true reward: minus the distance to `STAR`, rounded to quarters, so that it has no gradient anywhere."""
    return -jnp.round(4 * jnp.linalg.norm(latents[:, 0, 0, 0] - STAR[None], axis=-1)) / 4


def mean_reward(points: Points) -> float:
    """The true reward, averaged over points."""
    return float(reward(latents(points)).mean())


def points(latents: Latent) -> Points:
    """Latents as points."""
    return np.asarray(rearrange(latents, "n 1 1 1 c -> n c"))


def latents(points: Points) -> Latent:
    """Points as latents."""
    return rearrange(jnp.asarray(points), "n c -> n 1 1 1 c")


def distance(one: Points, other: Points) -> float:
    """The energy distance sqrt(2 E|x - y| - E|x - x'| - E|y - y'|), which is 0 for equal distributions only."""

    def mean(x, y):
        return np.linalg.norm(x[:, None] - y[None], axis=-1).mean()

    return float(np.sqrt(2 * mean(one, other) - mean(one, one) - mean(other, other)))


def scatter(axes: Axes, points: Points, title: str = "", colour: str = "tab:blue") -> None:
    """Draws points over circles, which show the Gaussians of the data up to three standard deviations."""
    for centre in WORLD.centres:
        axes.add_patch(Circle(centre, 3 * WORLD.deviation, fill=False, color="0.7", linewidth=0.8))
    axes.scatter(*points.T, s=3, alpha=0.5, linewidths=0, color=colour)
    axes.set_title(title, fontsize=9)
    axes.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect="equal", xticks=[], yticks=[])


def _quickly(function: Callable) -> Callable:
    """`jax.jit` of a function that takes longer to compile than to run, with little optimisation."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    options |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    return jax.jit(function, compiler_options=options)
