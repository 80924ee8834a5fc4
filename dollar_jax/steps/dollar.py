"""DOLLAR distillation, Alg. 1: generator, fake score and latent reward model, a pure step function each."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from dollar_jax.diffusion import Schedule, Velocity
from dollar_jax.importing import resolve
from dollar_jax.models.network import Network
from dollar_jax.notation import Key, Latent, Leaf, Params, PerExample
from dollar_jax.objectives.context import Context
from dollar_jax.objectives.latent_reward import reward_regression
from dollar_jax.objectives.velocity import velocity_matching
from dollar_jax.sampling import Keys, Span, denoiser, draw_times, fold, matched_times, rollout
from dollar_jax.steps.common import example_keys, make_optimizer, mean_gradient, moving_average, update


@struct.dataclass
class RewardStatistics:
    """Running count, mean and sum of squared differences (Welford): the reward model learns (R - mean) / deviation."""

    count: Leaf
    mean: Leaf
    squares: Leaf

    def normalize(self, reward: PerExample) -> PerExample:
        """The reward in running deviations from its running mean."""
        return (reward - self.mean) / jnp.sqrt(self.squares / self.count + 1e-12)

    def add(self, reward: PerExample) -> "RewardStatistics":
        """With a batch more."""
        count = self.count + reward.shape[0]
        shift = reward.mean() - self.mean
        squares = self.squares + jnp.sum((reward - reward.mean()) ** 2)
        squares += shift**2 * self.count * reward.shape[0] / count
        return RewardStatistics(count, self.mean + shift * reward.shape[0] / count, squares)


@struct.dataclass
class DollarState:
    """Everything that training changes. Parameters are nested dicts; optimizers go by the networks' names."""

    step: Leaf
    student: Params
    ema: Params
    fake_score: Params
    reward_model: Params
    reward_statistics: RewardStatistics
    optimizers: dict[str, optax.OptState]


@dataclass(frozen=True)
class Distillation:
    """What stays fixed: the networks as pure functions and the numbers of the config.

    Attributes:
      network: of teacher, fake score and student alike.
      reward_network: the latent reward model.
      velocity: what teacher and fake score predict.
      schedule: a_t and b_t.
      config: the fields `generator`, `fake_score` and `reward` of the config.
    """

    network: Network
    reward_network: Network
    velocity: Velocity
    schedule: Schedule
    config: ConfigDict

    @property
    def student_velocity(self) -> Velocity:
        """The teacher's kind (homogeneous), or x0 (heterogeneous)."""
        return "x0" if self.config.generator.heterogeneous else self.velocity

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """AdamW of 'generator', 'fake_score' or 'reward'; each counts its own updates."""
        updates = self.config.generator.iterations * (self.config.fake_score.updates if name == "fake_score" else 1)
        return make_optimizer(self.config[name].optimizer, updates)

    def init(self, teacher: Params, key: Key) -> DollarState:
        """Student, its average and the fake score start as copies of the teacher (Alg. 1, line 4)."""
        student, ema, fake_score = (jax.tree.map(lambda x: jnp.array(x, jnp.float32), teacher) for _ in range(3))
        reward_model = self.reward_network.init(key)
        trained = {"generator": student, "fake_score": fake_score, "reward": reward_model}
        return DollarState(
            step=jnp.zeros((), jnp.int32),
            student=student,
            ema=ema,
            fake_score=fake_score,
            reward_model=reward_model,
            reward_statistics=RewardStatistics(*jnp.zeros(3)),
            optimizers={name: self.optimizer(name).init(params) for name, params in trained.items()},
        )

    def generate(self, student: Params, batch: dict, keys: Keys) -> tuple[Latent, Span]:
        """x^ = G(c, eps): the student's one-step x0 at one of its times (Alg. 1, line 8), and the times at which it is
        compared with data. Only the last call has a gradient.
        """
        generator = self.config.generator
        apply = jax.named_scope("student")(self.network.apply)
        denoise = denoiser(apply, student, self.student_velocity, self.schedule)
        walker = denoiser(apply, lax.stop_gradient(student), self.student_velocity, self.schedule)
        x_t, times = rollout(
            generator.rollout,
            walker,
            batch["latents"],
            batch["text"],
            generator.times,
            self.schedule,
            generator.sampler,
            keys,
        )
        count = self.schedule.signal.shape[0] - 1
        span = matched_times(generator.matched_times, times, generator.times, count)
        return denoise(x_t, times, batch["text"])[0], span


def make_generator_step(setup: Distillation) -> Callable:
    """(state, frozen, batch, key) -> (state, metrics): the student and its average, Eq. 16.

    Calls of networks are named, so that a profile and the planner can tell whose they are.

    frozen: {'teacher': params, 'null_text': [1 l d]}. batch: {'latents', 'text', 'text_mask'}. The objectives of the
    config with a weight other than zero are summed: VSD + beta_CD CD + beta_FT FT in the paper.
    """
    generator = setup.config.generator
    weights = {name: weight for name, weight in generator.objectives.items() if weight}
    objectives = {
        name: partial(resolve(name, "dollar_jax.objectives"), **generator.options.get(name, {})) for name in weights
    }
    optimizer = setup.optimizer("generator")

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        def network(name, params, kind, guidance=0.0):
            apply = jax.named_scope(name)(setup.network.apply)
            return denoiser(apply, params, kind, setup.schedule, frozen["null_text"], guidance)

        def loss(student, part):
            keys = part["keys"]
            generated, span = setup.generate(student, part, fold(keys, 0))
            context = Context(
                schedule=setup.schedule,
                student=network("student", student, setup.student_velocity),
                ema=network("ema", state.ema, setup.student_velocity),
                teacher=partial(network, "teacher", frozen["teacher"], setup.velocity),
                fake_score=network("fake_score", state.fake_score, setup.velocity),
                reward_model=partial(jax.named_scope("reward_model")(setup.reward_network.apply), state.reward_model),
                latents=part["latents"],
                text=part["text"],
                text_mask=part["text_mask"],
                generated=generated,
                matched_times=span,
                keys=keys,
            )
            total, metrics = 0.0, {}
            for index, (name, objective) in enumerate(objectives.items()):
                with jax.named_scope(name):
                    value, extra = objective(replace(context, keys=fold(keys, index + 1)))
                total += weights[name] * value
                metrics |= {f"loss/{name}": value, **extra}
            return total, metrics

        examples = {**batch, "keys": example_keys(key, state.step, batch["text"].shape[0])}
        gradient, metrics = mean_gradient(loss, state.student, examples, generator.accumulate)
        student, optimizer_state, norms = update(
            optimizer, gradient, state.optimizers["generator"], state.student, "student", metrics["loss"]
        )
        state = state.replace(
            step=state.step + 1,
            student=student,
            ema=moving_average(state.ema, student, generator.ema, state.step),
            optimizers=state.optimizers | {"generator": optimizer_state},
        )
        return state, metrics | norms

    return step


def make_fake_score_step(setup: Distillation) -> Callable:
    """(state, frozen, batch, key) -> (state, metrics): the fake score, Eq. 4 on fresh samples of the student."""
    optimizer = setup.optimizer("fake_score")

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        del frozen  # the fake score learns from the student alone

        def loss(fake_score, part):
            keys = part["keys"]
            x0, span = setup.generate(state.student, part, fold(keys, 0))
            times = draw_times(fold(keys, 1), span)
            network = partial(jax.named_scope("fake_score")(setup.network.apply), fake_score)
            value = velocity_matching(network, setup.velocity, setup.schedule, x0, times, part["text"], fold(keys, 2))
            return value, {}

        examples = {**batch, "keys": example_keys(key, state.step, batch["text"].shape[0])}
        gradient, metrics = mean_gradient(loss, state.fake_score, examples, setup.config.generator.accumulate)
        fake_score, optimizer_state, norms = update(
            optimizer, gradient, state.optimizers["fake_score"], state.fake_score, "fake_score", metrics["loss"]
        )
        optimizers = state.optimizers | {"fake_score": optimizer_state}
        return state.replace(fake_score=fake_score, optimizers=optimizers), {
            "loss/fake_score": metrics["loss"],
            **norms,
        }

    return step


def make_proposal(setup: Distillation) -> Callable:
    """(state, batch, key) -> latents [b f h w c] for the reward model to learn on: half data, half the student's (Alg.
    1, line 16). They are decoded and scored outside, by any reward.
    """

    def propose(state: DollarState, batch: dict, key: Key) -> Latent:
        size = batch["text"].shape[0]
        generated, _ = setup.generate(state.student, batch, example_keys(key, state.step, size))
        from_data = (jnp.arange(size) % 2 == 0)[:, None, None, None, None]
        return jnp.where(from_data, batch["latents"], generated)

    return propose


def make_reward_step(setup: Distillation) -> Callable:
    """(state, frozen, batch, key) -> (state, metrics): the latent reward model, Eq. 14.

    batch: {'latents', 'text', 'text_mask', 'reward': [b]} of proposed latents with the true reward of their videos.
    """
    optimizer = setup.optimizer("reward")

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        del frozen, key  # a regression: nothing frozen, nothing random
        statistics = state.reward_statistics.add(batch["reward"])
        wanted = statistics.normalize(batch["reward"])

        def loss(params, part):
            apply = jax.named_scope("reward_model")(setup.reward_network.apply)
            estimate = apply(params, part["latents"], part["text"], part["text_mask"])
            return reward_regression(estimate, part["wanted"]), {}

        gradient, metrics = mean_gradient(loss, state.reward_model, {**batch, "wanted": wanted}, 1)
        reward_model, optimizer_state, norms = update(
            optimizer, gradient, state.optimizers["reward"], state.reward_model, "reward_model", metrics["loss"]
        )
        state = state.replace(
            reward_model=reward_model,
            reward_statistics=statistics,
            optimizers=state.optimizers | {"reward": optimizer_state},
        )
        # Even rows are data, odd rows the student's: see make_proposal.
        rewards = {"reward_data": batch["reward"][::2].mean(), "reward_student": batch["reward"][1::2].mean()}
        return state, {"loss/reward_model": metrics["loss"], **rewards, **norms}

    return step
