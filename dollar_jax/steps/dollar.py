"""DOLLAR distillation, Alg. 1: pure step functions of the generator, the fake score and the objectives' own networks.

The latent reward model's step is in `dollar_jax.steps.reward`, the order of the steps in `dollar_jax.steps.iteration`.
"""

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct
from jax import lax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from dollar_jax.diffusion import PredictionType, Schedule, Span
from dollar_jax.models import lora
from dollar_jax.models.network import Network
from dollar_jax.objectives import Objective, needs_of, used
from dollar_jax.objectives.context import Context
from dollar_jax.objectives.denoising import denoising_loss
from dollar_jax.objectives.policy_gradient import path
from dollar_jax.sampling import (
    Denoiser,
    Keys,
    denoiser,
    draw_times,
    fold,
    interleave,
    matched_times,
    next_times,
    normal,
    path_of,
    rollout,
    solve,
    step_to,
    timed,
)
from dollar_jax.steps.common import example_keys, make_optimizer, mean_gradient, moving_average, update
from dollar_jax.steps.reward import PromptMeans, Replay, RewardStatistics
from dollar_jax.types import Key, Latent, Leaf, Params, PerExample, Times, Video


@struct.dataclass
class DollarState:
    """The state of a distillation: all arrays that training changes.

    Attributes:
      step: number of updates of the student.
      student, ema, fake_score, reward_model: parameters, as nested dicts; `ema` is the student's average. With
        `config.lora.rank` the first three are adapters on the teacher.
      own, own_ema: parameters of the objectives' own networks by `Objective.key`, and the averages of those with one.
      reward_statistics: running mean and deviation of the true reward.
      prompt_means: baselines of the policy gradient.
      replay: a `Replay`, or None.
      optimizers: optimiser states by the networks' names.
    """

    step: Leaf
    student: Params
    ema: Params
    fake_score: Params
    reward_model: Params
    own: dict[str, Params]
    own_ema: dict[str, Params]
    reward_statistics: RewardStatistics
    prompt_means: PromptMeans
    replay: Leaf
    optimizers: dict[str, optax.OptState]


class Generated(NamedTuple):
    """A sample of the student.

    x0: its one-step x0 at one of its times, with gradient, [b f h w c].
    span: the times at which it is compared with data.
    at: the times of the student's input.
    state, state_at: the state to which noise is added for that, without gradient, and its times: x0 at the clean time,
      or with `matched_times` "trajectory" the state that the sampler visits next.
    """

    x0: Latent
    span: Span
    at: Times
    state: Latent
    state_at: Times


@dataclass(frozen=True)
class Distillation:
    """The fixed part of a distillation: networks as pure functions, and the config.

    Attributes:
      network: the network of teacher, fake score and student.
      reward_network: the latent reward model.
      prediction_type: prediction type of teacher and fake score.
      schedule: noise schedule.
      config: a config with the fields `generator`, `fake_score`, `reward` and `lora`.
      latent_shape: shape of a video's latents, (f, h, w, c).
      videos: whether batches have 'latents', those of the captions' videos; else captions are all that they have.
      own: the objectives' own networks, by `Objective.key`.
      empty_replay: () -> the initial replay of the reward model, None for no replay.
      decode: (parameters of the VAE, latents) -> videos in 0..1; None if no objective needs pixels.
      pixel_reward: (videos in 0..1, captions prepared by the reward, parameters of the reward) -> [b]; None likewise.
    """

    network: Network
    reward_network: Network
    prediction_type: PredictionType
    schedule: Schedule
    config: ConfigDict
    latent_shape: Sequence[int]
    videos: bool = True
    own: Mapping[str, Network] = field(default_factory=dict)
    empty_replay: Callable[[], Replay | None] = lambda: None
    decode: Callable[[Params, Latent], Video] | None = None
    pixel_reward: Callable[[Video, dict], PerExample] | None = None

    @cached_property
    def objectives(self) -> list[Objective]:
        """The objectives with a weight that is not 0."""
        return used(self.config.generator)

    @cached_property
    def needs(self) -> set[str]:
        """The union of the objectives' `needs`."""
        return needs_of(self.objectives)

    @property
    def student_prediction_type(self) -> PredictionType:
        """Prediction type of the student: the teacher's (homogeneous) or x0 (heterogeneous)."""
        return "x0" if self.config.generator.heterogeneous else self.prediction_type

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """AdamW of 'generator', 'fake_score' or 'reward', for the number of its updates in the run."""
        updates = {
            "generator": 2 if self.config.reward.step == "separate" else 1,
            "fake_score": self.config.fake_score.updates,
            "reward": 1,
        }
        return make_optimizer(self.config[name].optimizer, self.config.generator.iterations * updates[name])

    def own_optimizer(self, objective: Objective) -> optax.GradientTransformation:
        """AdamW of an objective's own network; by default with the settings of the fake score's."""
        settings = objective.settings.get("optimizer", self.config.fake_score.optimizer)
        return make_optimizer(settings, self.config.generator.iterations * objective.settings.get("updates", 1))

    def init(self, teacher: Params, key: Key) -> DollarState:
        """The initial state: student, its average and fake score equal the teacher (Alg. 1, line 4).

        They are copies of it, or adapters that do not change it yet.
        """
        student, ema, fake_score = self._copies(teacher, key)
        reward_model = self.reward_network.init(key)
        trained = {"generator": student, "fake_score": fake_score, "reward": reward_model}
        optimizers = {name: self.optimizer(name).init(params) for name, params in trained.items()}
        own, own_ema = {}, {}
        for index, objective in enumerate(objective for objective in self.objectives if objective.own):
            own[objective.key] = self.own[objective.key].init(jax.random.fold_in(key, index))
            if objective.settings.get("ema", 0.0):
                own_ema[objective.key] = jax.tree.map(jnp.copy, own[objective.key])
            optimizers[own_name(objective)] = self.own_optimizer(objective).init(own[objective.key])
        return DollarState(
            step=jnp.zeros((), jnp.int32),
            student=student,
            ema=ema,
            fake_score=fake_score,
            reward_model=reward_model,
            own=own,
            own_ema=own_ema,
            reward_statistics=RewardStatistics(*jnp.zeros(3)),
            prompt_means=PromptMeans.empty(),
            replay=self.empty_replay(),
            optimizers=optimizers,
        )

    def _copies(self, teacher: Params, key: Key) -> Iterator[Params]:
        options = self.config.lora
        if not options.rank:
            return (jax.tree.map(lambda x: jnp.array(x, jnp.float32), teacher) for _ in range(3))
        paths = lora.adaptable(self.network, options.targets)
        mine, other = jax.random.split(key)  # the fake score's A is another draw
        draws = (options.rank, mine), (options.rank, mine), (options.fake_score_rank or options.rank, other)
        return (lora.init(teacher, paths, rank, draw) for rank, draw in draws)

    def whole(self, params: Params, frozen: Params) -> Params:
        """What `network` gets for the student, its average or the fake score: `params`, or the teacher with them."""
        options = self.config.lora
        return lora.attach(frozen["teacher"], params, options.alpha) if options.rank else params

    def generate(self, student: Params, batch: dict, keys: Keys) -> Generated:
        """Generates x^ = G(c, eps), the student's one-step x0 at one of its times (Alg. 1, line 8).

        Only the last call of the network has a gradient. `student` are its `whole` parameters, as in all that follows.
        """
        generator = self.config.generator
        # A simulated rollout takes only the shape from the latents.
        latents = batch["latents"] if self.videos else jnp.zeros((count(batch), *self.latent_shape))
        x_t, times = rollout(
            generator.rollout,
            self.denoiser(lax.stop_gradient(student)),
            latents,
            batch["condition"],
            generator.times,
            self.schedule,
            generator.sampler,
            keys,
        )
        span = matched_times(generator.matched_times, times, generator.times, self.schedule)
        x0, eps = self.denoiser(student)(x_t, times, batch["condition"])
        state, state_at = x0, jnp.full_like(times, self.schedule.clean)
        if generator.matched_times == "trajectory":
            state_at = next_times(times, generator.times, self.schedule)
            z = normal(fold(keys, 3), x0.shape[1:])
            state = step_to(generator.sampler, self.schedule, x0, eps, z, times, state_at)
        return Generated(x0, span, times, lax.stop_gradient(state), state_at)

    def denoiser(self, student: Params) -> Denoiser:
        """The student with these parameters as a denoiser (x_t, t, condition) -> (x0, eps)."""
        apply = jax.named_scope("student")(self.network.apply)
        return denoiser(apply, student, self.student_prediction_type, self.schedule)

    def sample(self, student: Params, batch: dict, keys: Keys, steps: int) -> Latent:
        """Runs the student's whole chain from pure noise; the last `steps` calls have a gradient (DRaFT-K)."""
        generator = self.config.generator
        times = path_of([*sorted(generator.times, reverse=True), self.schedule.clean], count(batch))
        cut = max(len(times) - 1 - steps, 0)
        x_t = normal(fold(keys, 0), self.latent_shape)
        for stream, params, part in (1, lax.stop_gradient(student), times[: cut + 1]), (2, student, times[cut:]):
            denoise, part_keys = self.denoiser(params), fold(keys, stream)
            x_t, _ = solve(denoise, x_t, batch["condition"], part, self.schedule, generator.sampler, part_keys)
        return x_t

    def trajectory(self, student: Params, batch: dict, keys: Keys) -> tuple[Float[Array, "b n f h w c"], Latent]:
        """All states of an ancestral chain of the student along `policy_gradient.path`, and the x0 at its end."""
        denoise = self.denoiser(student)
        times = path_of(path(self.config.generator.times, self.schedule), count(batch))
        noise = normal(fold(keys, 0), self.latent_shape)
        last, visited = solve(denoise, noise, batch["condition"], times, self.schedule, "ancestral", fold(keys, 1))
        trajectory = rearrange(jnp.concatenate([visited, last[None]]), "n b ... -> b n ...")
        return trajectory, denoise(last, times[-1], batch["condition"])[0]

    def context(
        self, state: DollarState, frozen: Params, part: dict, student: Params, statistics: RewardStatistics
    ) -> Context:
        """The context shared by all objectives; each objective replaces `keys` and `own`.

        Calls of networks have named scopes, so that profiles and the planner can attribute them.
        """

        def network(name, params, prediction_type, guidance=0.0):
            apply = jax.named_scope(name)(self.network.apply)
            return denoiser(apply, params, prediction_type, self.schedule, frozen["negative"], guidance)

        def reward_model(*inputs):
            apply = jax.named_scope("reward_model")(self.reward_network.apply)
            return statistics.restore(apply(state.reward_model, *inputs))

        def pixel_reward(latents):
            return self.pixel_reward(self.decode(frozen["vae"], latents), part["prepared"], frozen["reward"])

        keys = part["keys"]
        sample = self.generate(student, part, fold(keys, 0))
        return Context(
            schedule=self.schedule,
            student=network("student", student, self.student_prediction_type),
            ema=network("ema", self.whole(state.ema, frozen), self.student_prediction_type),
            teacher=partial(network, "teacher", frozen["teacher"], self.prediction_type),
            fake_score=network("fake_score", self.whole(state.fake_score, frozen), self.prediction_type),
            reward_model=reward_model,
            own=None,
            latents=part["latents"] if self.videos else None,
            condition=part["condition"],
            negative=frozen["negative"],
            empty=frozen["empty"],
            generated=sample.x0,
            matched_times=sample.span,
            generated_at=sample.at,
            state=sample.state,
            state_at=sample.state_at,
            keys=keys,
            times=tuple(self.config.generator.times),
            sample=lambda steps: self.sample(student, part, fold(keys, len(self.objectives) + 1), steps),
            pixel_reward=pixel_reward,
            deviation=statistics.deviation,
            trajectory=part.get("trajectory"),
            reward=part.get("reward"),
            advantage=part.get("advantage"),
        )

    def own_network(self, objective: Objective, params: Params) -> Callable:
        """An objective's own network with these parameters, as a function of its other arguments."""
        return partial(jax.named_scope("own")(self.own[objective.key].apply), params)


def count(batch: dict) -> int:
    """The number of examples in a batch."""
    return len(batch["condition"].mask)


def own_name(objective: Objective) -> str:
    """Name of an objective's own network in the log and in `DollarState.optimizers`."""
    return f"{objective.key}_own"


def make_generator_step(setup: Distillation, names: Collection[str] | None = None) -> Callable:
    """Makes the step (state, frozen, batch, key) -> (state, metrics) of the student and its average, Eq. 16.

    The loss is the weighted sum of the objectives: VSD + beta_CD CD + beta_FT FT in the paper.

    frozen: {'teacher': params, 'negative' and 'empty': conditions with b = 1}; for an objective on pixels also the
      parameters of the VAE ('vae') and of the reward ('reward').
    batch: {'latents', 'condition'}, with `setup.videos` False without latents; for an objective on pixels also
      'prepared', the captions prepared by the reward; for a policy gradient also 'trajectory', 'reward' and 'prompt',
      the number of each caption [b].

    Args:
      names: names of the objectives to use; None: all.
    """
    generator = setup.config.generator
    objectives = [objective for objective in setup.objectives if names is None or objective.name in names]
    optimizer = setup.optimizer("generator")

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        statistics, means = state.reward_statistics, state.prompt_means
        if "reward" in batch:
            prompt, reward = batch["prompt"], batch["reward"]
            statistics = statistics.add(reward)
            # The prompt's mean excludes this batch. The mean of all rewards includes it, as a small part.
            batch = batch | {"advantage": reward - means.baseline(prompt, statistics.mean)}
            means = means.add(prompt, reward)

        def loss(student, part):
            context = setup.context(state, frozen, part, setup.whole(student, frozen), statistics)
            total, metrics = 0.0, {}
            for index, objective in enumerate(objectives):
                own = setup.own_network(objective, state.own[objective.key]) if objective.own else None
                with jax.named_scope(objective.name):
                    mine = replace(context, keys=fold(part["keys"], index + 1), own=own)
                    value, extra = objective.function(mine)
                total += objective.weight * value
                metrics |= {f"loss/{objective.name}": value, **extra}
            return total, metrics

        examples = {**batch, "keys": example_keys(key, state.step, count(batch))}
        gradient, metrics = mean_gradient(loss, state.student, examples, generator.accumulate)
        student, optimizer_state, norms = update(
            optimizer, gradient, state.optimizers["generator"], state.student, "student", metrics["loss"]
        )
        state = state.replace(
            step=state.step + 1,
            student=student,
            ema=moving_average(state.ema, student, generator.ema, state.step),
            reward_statistics=statistics,
            prompt_means=means,
            optimizers=state.optimizers | {"generator": optimizer_state},
        )
        return state, metrics | norms

    return step


def make_fake_score_step(setup: Distillation) -> Callable:
    """Makes the step (state, frozen, batch, key) -> (state, metrics) of the fake score: Eq. 4 on student samples."""
    optimizer = setup.optimizer("fake_score")

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        def loss(fake_score, part):
            keys = part["keys"]
            sample = setup.generate(setup.whole(state.student, frozen), part, fold(keys, 0))
            times = draw_times(fold(keys, 1), setup.schedule, sample.span)
            apply = timed(jax.named_scope("fake_score")(setup.network.apply), setup.schedule)
            network = partial(apply, setup.whole(fake_score, frozen))
            draws = sample.state, times, part["condition"], fold(keys, 2), sample.state_at
            return denoising_loss(network, setup.prediction_type, setup.schedule, *draws), {}

        examples = {**batch, "keys": example_keys(key, state.step, count(batch))}
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


def make_own_step(setup: Distillation, objective: Objective) -> Callable:
    """Makes the step (state, frozen, batch, key) -> (state, metrics) of an objective's own network."""
    name, key_of, settings = own_name(objective), objective.key, objective.settings
    own_loss = partial(objective.own.loss, **settings.get("options", {}))
    optimizer, decay = setup.own_optimizer(objective), settings.get("ema", 0.0)

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        def loss(params, part):
            context = setup.context(state, frozen, part, setup.whole(state.student, frozen), state.reward_statistics)
            own = setup.own_network(objective, params)
            with jax.named_scope(name):
                return own_loss(replace(context, keys=fold(part["keys"], 1), own=own))

        examples = {**batch, "keys": example_keys(key, state.step, count(batch))}
        gradient, metrics = mean_gradient(loss, state.own[key_of], examples, setup.config.generator.accumulate)
        params, optimizer_state, norms = update(
            optimizer, gradient, state.optimizers[name], state.own[key_of], name, metrics["loss"]
        )
        averages = state.own_ema
        if decay:
            averages = averages | {key_of: moving_average(averages[key_of], params, decay, state.step)}
        state = state.replace(
            own=state.own | {key_of: params},
            own_ema=averages,
            optimizers=state.optimizers | {name: optimizer_state},
        )
        return state, {f"loss/{name}": metrics.pop("loss"), **metrics, **norms}

    return step


def make_proposal(setup: Distillation) -> Callable:
    """Makes (state, frozen, batch, key) -> batch for the reward model, before scoring (Alg. 1, line 16).

    The result has 2 b rows {'latents', 'condition', 'scored'}: the clip x of each caption, followed by the student's
    sample x^ for it; without videos two samples. The caller decodes the latents 'scored' and scores the videos with the
    true reward.
    """

    def propose(state: DollarState, frozen: Params, batch: dict, key: Key) -> dict:
        keys, student = example_keys(key, state.step, count(batch)), setup.whole(state.student, frozen)
        generated, *_ = setup.generate(student, batch, keys)
        other = batch["latents"] if setup.videos else setup.generate(student, batch, fold(keys, 3))[0]
        latents = interleave(other, generated)
        condition = interleave(batch["condition"], batch["condition"])
        return {"latents": latents, "condition": condition, "scored": latents}

    return propose


def make_trajectory(setup: Distillation) -> Callable:
    """Makes (state, frozen, batch, key) -> batch for a policy gradient, before scoring (Alg. 2, lines 5-11).

    It adds 'trajectory' [b n f h w c], the states of the student's chain, and 'scored' [b f h w c], the x0 at its end.
    The caller decodes the latents 'scored' and scores the videos with the true reward.
    """

    def follow(state: DollarState, frozen: Params, batch: dict, key: Key) -> dict:
        keys = example_keys(key, state.step, count(batch))
        trajectory, x0 = setup.trajectory(setup.whole(state.student, frozen), batch, keys)
        return {**batch, "trajectory": trajectory, "scored": x0}

    return follow


def split_batch(batch: dict, parts: int) -> list[dict]:
    """Splits a batch of parts x b rows into `parts` batches of b rows; row i goes to batch i mod parts.

    So each device splits its own rows, and the batches are the same on every mesh.
    """

    def rows(x):  # the part is the first axis, so that a part is a slice
        return rearrange(x, "(b parts) ... -> parts b ...", parts=parts)

    split = jax.tree.map(rows, batch)
    return [jax.tree.map(operator.itemgetter(part), split) for part in range(parts)]
