"""The state of a distillation, and its fixed part: networks, config, how the student generates, what objectives get."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from dollar_jax.models.flow_map import with_targets
from dollar_jax.models.network import Network
from dollar_jax.objectives import Objective, group_of, needs_of, used
from dollar_jax.objectives.context import Context, Trajectories
from dollar_jax.objectives.policy_gradient import path
from dollar_jax.sampling import (
    Denoiser,
    FlowMap,
    Keys,
    denoiser,
    fold,
    matched_times,
    next_times,
    normal,
    path_of,
    rollout,
    solve,
    step_to,
    timed,
)
from dollar_jax.steps.common import make_optimizer
from dollar_jax.steps.reward import PromptMeans, Replay, RewardStatistics
from dollar_jax.types import Condition, Key, Latent, Leaf, Params, PerExample, Times, Video

TUNING = "latent_reward"  # the objective that has its own step if reward.step is separate


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
      student_network: the student's network if it is a flow map; None: `network`.
      reward_network: the latent reward model.
      prediction_type: prediction type of teacher and fake score.
      schedule: noise schedule.
      config: a config with the fields `generator`, `fake_score`, `reward` and `lora`.
      latent_shape: shape of a video's latents, (f, h, w, c).
      videos: whether batches have 'latents', those of the captions' videos; else captions are all that they have.
      own: the objectives' own networks, by `Objective.key`.
      forward_mode: the student's network with an attention through which `jax.jvp` can differentiate; None if no
        objective needs that.
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
    student_network: Network | None = None
    forward_mode: Network | None = None
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
    def group(self) -> int:
        """Number of trajectories of each caption, see `policy_gradient`."""
        return group_of(self.objectives)

    @property
    def separate(self) -> bool:
        """Whether an iteration has a second update of the student, on the latent reward alone (Alg. 1, line 19)."""
        return self.config.reward.step == "separate" and any(one.name == TUNING for one in self.objectives)

    @property
    def student_prediction_type(self) -> PredictionType:
        """Prediction type of the student: the teacher's (homogeneous) or x0 (heterogeneous)."""
        return "x0" if self.config.generator.heterogeneous else self.prediction_type

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """AdamW of 'generator', 'fake_score' or 'reward', for the number of its updates in the run."""
        iterations, reward = self.config.generator.iterations, self.config.reward
        updates = {
            "generator": iterations * (2 if self.separate else 1),
            "fake_score": iterations * self.config.fake_score.updates,
            "reward": reward.pretrain + (iterations if reward.concurrent else 0),
        }
        return make_optimizer(self.config[name].optimizer, updates[name])

    def own_optimizer(self, objective: Objective) -> optax.GradientTransformation:
        """AdamW of an objective's own network; by default with the settings of the fake score's."""
        settings = objective.settings.get("optimizer", self.config.fake_score.optimizer)
        return make_optimizer(settings, self.config.generator.iterations * objective.settings.get("updates", 1))

    def init(self, teacher: Params, key: Key) -> DollarState:
        """The initial state: student, its average and fake score equal the teacher (Alg. 1, line 4).

        They are copies of it, or adapters that do not change it yet, or a flow map that begins as it.
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
            student = with_targets(teacher) if self.config.generator.flow_map else teacher
            return (jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree) for tree in (student, student, teacher))
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
            generator.shared_time,
        )
        span = matched_times(generator.matched_times, times, generator.times, self.schedule)
        x0, eps = self.denoiser(student)(x_t, times, batch["condition"])
        state, state_at = x0, jnp.full_like(times, self.schedule.clean)
        if generator.matched_times == "trajectory":
            state_at = next_times(times, generator.times, self.schedule)
            z = normal(fold(keys, 3), x0.shape[1:])
            state = step_to(generator.sampler, self.schedule, x0, eps, z, times, state_at)
        return Generated(x0, span, times, lax.stop_gradient(state), state_at)

    def chain(self, student: Params, batch: dict, keys: Keys) -> Generated:
        """The samples of one simulated chain at all n times of the student; the fields are [b n ...], without gradient.

        It takes n calls of the network. With the same keys the sample at a time is that of `generate` at this time.
        """
        generator, schedule = self.config.generator, self.schedule
        denoise, walk = self.denoiser(student), fold(keys, 2)

        def step(x_t, scanned):
            index, times = scanned
            x0, eps = denoise(x_t, times, batch["condition"])
            following = next_times(times, generator.times, schedule)
            z = normal(fold(walk, index), x0.shape[1:])
            moved = step_to(generator.sampler, schedule, x0, eps, z, times, following)
            span = matched_times(generator.matched_times, times, generator.times, schedule)
            state, state_at = x0, jnp.full_like(times, schedule.clean)
            if generator.matched_times == "trajectory":
                state, state_at = moved, following
            return moved, Generated(x0, span, times, state, state_at)

        path = path_of(sorted(generator.times, reverse=True), count(batch))
        _, samples = lax.scan(step, normal(fold(keys, 1), self.latent_shape), (jnp.arange(len(path)), path))
        return jax.tree.map(lambda x: rearrange(x, "n b ... -> b n ..."), samples)

    def denoiser(self, student: Params, name: str = "student", network: Network | None = None) -> Denoiser | FlowMap:
        """The student with these parameters as a denoiser (x_t, t, condition) -> (x0, eps).

        Args:
          name: name of its calls in profiles.
          network: another form of the student's network.
        """
        network = network or self.student_network or self.network
        generator, apply = self.config.generator, jax.named_scope(name)(network.apply)
        return denoiser(apply, student, self.student_prediction_type, self.schedule, flow_map=generator.flow_map)

    def features(self, fake_score: Params, x_t: Latent, times: Times, condition: Condition, depths: Sequence[float]):
        """The fake score's features, see `Context.features`, with these parameters."""
        apply = timed(jax.named_scope("fake_score")(self.network.apply), self.schedule)
        return apply(fake_score, x_t, times, condition, depths, method="features")

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

        def network(name, params, guidance=0.0):
            apply = jax.named_scope(name)(self.network.apply)
            return denoiser(apply, params, self.prediction_type, self.schedule, frozen["negative"], guidance)

        def reward_model(*inputs):
            apply = jax.named_scope("reward_model")(self.reward_network.apply)
            return statistics.restore(apply(state.reward_model, *inputs))

        def pixel_reward(latents):
            return self.pixel_reward(self.decode(frozen["vae"], latents), part["prepared"], frozen["reward"])

        keys = part["keys"]
        sample = self.generate(student, part, fold(keys, 0))
        average = jax.device_put(state.ema, jax.memory.Space.Device)  # `offload` keeps it in the host's memory
        return Context(
            schedule=self.schedule,
            student=self.denoiser(student),
            differentiable_student=self.denoiser(lax.stop_gradient(student), network=self.forward_mode),
            start=self.denoiser(self.whole(frozen["start"], frozen), "start") if "start" in frozen else None,
            ema=self.denoiser(self.whole(average, frozen), "ema"),
            teacher=partial(network, "teacher", frozen["teacher"]),
            fake_score=network("fake_score", self.whole(state.fake_score, frozen)),
            features=partial(self.features, self.whole(state.fake_score, frozen)),
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
            step=state.step,
            times=tuple(self.config.generator.times),
            sample=lambda steps: self.sample(student, part, fold(keys, len(self.objectives) + 1), steps),
            pixel_reward=pixel_reward,
            deviation=statistics.deviation,
            trajectories=Trajectories(**part["trajectories"]) if "trajectories" in part else None,
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
