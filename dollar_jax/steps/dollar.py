"""DOLLAR distillation, Alg. 1: generator and fake score, a pure step function each. The latent reward model's is in
`dollar_jax.steps.reward`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct
from jax import lax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from dollar_jax.diffusion import PredictionType, Schedule
from dollar_jax.importing import resolve
from dollar_jax.models.network import Network
from dollar_jax.objectives.context import Context
from dollar_jax.objectives.denoising import denoising_loss
from dollar_jax.objectives.policy_gradient import path
from dollar_jax.sampling import Denoiser, Keys, Span, denoiser, draw_times, fold, matched_times, normal, rollout, solve
from dollar_jax.steps.common import example_keys, make_optimizer, mean_gradient, moving_average, update
from dollar_jax.steps.reward import PromptMeans, Replay, RewardStatistics
from dollar_jax.types import Key, Latent, Leaf, Params, PerExample, Video


@struct.dataclass
class DollarState:
    """Everything that training changes. Parameters are nested dicts; optimizers go by the networks' names."""

    step: Leaf
    student: Params
    ema: Params
    fake_score: Params
    reward_model: Params
    reward_statistics: RewardStatistics
    prompt_means: PromptMeans
    replay: Leaf  # a Replay, or None
    optimizers: dict[str, optax.OptState]


@dataclass(frozen=True)
class Distillation:
    """What stays fixed: the networks as pure functions and the numbers of the config.

    Attributes:
      network: of teacher, fake score and student alike.
      reward_network: the latent reward model.
      prediction_type: what teacher and fake score predict.
      schedule: a_t and b_t.
      config: the fields `generator`, `fake_score` and `reward` of the config.
      empty_replay: () -> the replay that the reward model starts with, None for none.
      decode: (the VAE's parameters, latents) -> videos 0..1, where an objective sees pixels.
      pixel_reward: (videos 0..1, what the reward prepared of the captions) -> [b], likewise.
    """

    network: Network
    reward_network: Network
    prediction_type: PredictionType
    schedule: Schedule
    config: ConfigDict
    empty_replay: Callable[[], Replay | None] = lambda: None
    decode: Callable[[Params, Latent], Video] | None = None
    pixel_reward: Callable[[Video, dict], PerExample] | None = None

    @property
    def student_prediction_type(self) -> PredictionType:
        """The teacher's kind (homogeneous), or x0 (heterogeneous)."""
        return "x0" if self.config.generator.heterogeneous else self.prediction_type

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """AdamW of 'generator', 'fake_score' or 'reward'; each counts its own updates."""
        updates = {
            "generator": 2 if self.config.reward.step == "separate" else 1,
            "fake_score": self.config.fake_score.updates,
            "reward": 1,
        }
        return make_optimizer(self.config[name].optimizer, self.config.generator.iterations * updates[name])

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
            prompt_means=PromptMeans.empty(),
            replay=self.empty_replay(),
            optimizers={name: self.optimizer(name).init(params) for name, params in trained.items()},
        )

    def generate(self, student: Params, batch: dict, keys: Keys) -> tuple[Latent, Span]:
        """x^ = G(c, eps): the student's one-step x0 at one of its times (Alg. 1, line 8), and the times at which it is
        compared with data. Only the last call has a gradient.
        """
        generator = self.config.generator
        x_t, times = rollout(
            generator.rollout,
            self.denoiser(lax.stop_gradient(student)),
            batch["latents"],
            batch["text"],
            generator.times,
            self.schedule,
            generator.sampler,
            keys,
        )
        count = self.schedule.signal.shape[0] - 1
        span = matched_times(generator.matched_times, times, generator.times, count)
        return self.denoiser(student)(x_t, times, batch["text"])[0], span

    def denoiser(self, student: Params) -> Denoiser:
        """The student as (x_t, t, text) -> (x0, eps)."""
        apply = jax.named_scope("student")(self.network.apply)
        return denoiser(apply, student, self.student_prediction_type, self.schedule)

    def sample(self, student: Params, batch: dict, keys: Keys, steps: int) -> Latent:
        """The end of the student's whole chain from pure noise; its last `steps` calls have a gradient (DRaFT-K)."""
        generator, size = self.config.generator, batch["text"].shape[0]
        times = jnp.asarray([*sorted(generator.times, reverse=True), -1])
        times = jnp.broadcast_to(times[:, None], (len(times), size))
        cut = max(len(times) - 1 - steps, 0)
        x_t = normal(fold(keys, 0), batch["latents"].shape[1:])
        for stream, params, part in (1, lax.stop_gradient(student), times[: cut + 1]), (2, student, times[cut:]):
            denoise, part_keys = self.denoiser(params), fold(keys, stream)
            x_t, _ = solve(denoise, x_t, batch["text"], part, self.schedule, generator.sampler, part_keys)
        return x_t

    def trajectory(self, student: Params, batch: dict, keys: Keys) -> tuple[Float[Array, "b n f h w c"], Latent]:
        """Every state of the student's chain by ancestral steps along `policy_gradient.path`, and the x0 it ends in."""
        denoise, times = self.denoiser(student), jnp.asarray(path(self.config.generator.times))
        times = jnp.broadcast_to(times[:, None], (len(times), batch["text"].shape[0]))
        noise = normal(fold(keys, 0), batch["latents"].shape[1:])
        last, visited = solve(denoise, noise, batch["text"], times, self.schedule, "ancestral", fold(keys, 1))
        trajectory = rearrange(jnp.concatenate([visited, last[None]]), "n b ... -> b n ...")
        return trajectory, denoise(last, times[-1], batch["text"])[0]


def make_generator_step(setup: Distillation, names: Collection[str] | None = None) -> Callable:
    """(state, frozen, batch, key) -> (state, metrics): the student and its average, Eq. 16.

    Calls of networks are named, so that a profile and the planner can tell whose they are.

    frozen: {'teacher': params, 'null_text': [1 l d]}, and the VAE's params as 'vae' where an objective sees pixels.
    batch: {'latents', 'text', 'text_mask'}; also {'prepared'}, what the reward made of the captions, for such an
    objective, and {'trajectory', 'reward', 'prompt': number of the caption [b]} for a policy gradient. Those of the
    config's objectives that have a weight (and are among `names`, if given) are summed: VSD + beta_CD CD + beta_FT FT
    in the paper.
    """
    generator = setup.config.generator
    weights = {name: weight for name, weight in generator.objectives.items() if weight}
    weights = {name: weight for name, weight in weights.items() if names is None or name in names}
    objectives = {
        name: partial(resolve(name, "dollar_jax.objectives"), **generator.options.get(name, {})) for name in weights
    }
    optimizer = setup.optimizer("generator")

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        def network(name, params, kind, guidance=0.0):
            apply = jax.named_scope(name)(setup.network.apply)
            return denoiser(apply, params, kind, setup.schedule, frozen["null_text"], guidance)

        statistics, means = state.reward_statistics, state.prompt_means
        if "reward" in batch:
            prompt, reward = batch["prompt"], batch["reward"]
            statistics = statistics.add(reward)
            # The prompt's mean is of earlier videos; of the mean of all, a video's own reward is one of many.
            batch = batch | {"advantage": reward - means.baseline(prompt, statistics.mean)}
            means = means.add(prompt, reward)

        def loss(student, part):
            keys = part["keys"]
            generated, span = setup.generate(student, part, fold(keys, 0))

            def reward_model(*inputs):
                apply = jax.named_scope("reward_model")(setup.reward_network.apply)
                return statistics.restore(apply(state.reward_model, *inputs))

            def pixel_reward(latents):
                return setup.pixel_reward(setup.decode(frozen["vae"], latents), part["prepared"], frozen["reward"])

            context = Context(
                schedule=setup.schedule,
                student=network("student", student, setup.student_prediction_type),
                ema=network("ema", state.ema, setup.student_prediction_type),
                teacher=partial(network, "teacher", frozen["teacher"], setup.prediction_type),
                fake_score=network("fake_score", state.fake_score, setup.prediction_type),
                reward_model=reward_model,
                latents=part["latents"],
                text=part["text"],
                text_mask=part["text_mask"],
                null_text=frozen["null_text"],
                generated=generated,
                matched_times=span,
                keys=keys,
                times=tuple(generator.times),
                sample=lambda steps: setup.sample(student, part, fold(keys, len(objectives) + 1), steps),
                pixel_reward=pixel_reward,
                deviation=statistics.deviation,
                trajectory=part.get("trajectory"),
                reward=part.get("reward"),
                advantage=part.get("advantage"),
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
            reward_statistics=statistics,
            prompt_means=means,
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
            value = denoising_loss(
                network, setup.prediction_type, setup.schedule, x0, times, part["text"], fold(keys, 2)
            )
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
    """(state, batch, key) -> {'latents', 'text', 'text_mask'} of 2 b rows for the reward model to learn on: x and x^ of
    Alg. 1, line 16, each caption's clip and after it the student's sample. They are decoded and scored outside, by any
    reward.
    """

    def propose(state: DollarState, batch: dict, key: Key) -> dict:
        generated, _ = setup.generate(state.student, batch, example_keys(key, state.step, batch["text"].shape[0]))
        # Neighbours, so that both are on one device.
        pairs = {name: [batch[name], batch[name]] for name in ("text", "text_mask")}
        pairs["latents"] = [batch["latents"], generated]
        return {name: rearrange(pair, "pair b ... -> (b pair) ...") for name, pair in pairs.items()}

    return propose


def deal(batch: dict, hands: int) -> list[dict]:
    """A batch of hands x b rows as so many batches of b: row i goes to the batch i mod hands. So each device deals out
    its own rows, and the batches are the same on every mesh.
    """
    parts = {name: rearrange(x, "(b hands) ... -> hands b ...", hands=hands) for name, x in batch.items()}
    return [{name: part[hand] for name, part in parts.items()} for hand in range(hands)]


def make_trajectory(setup: Distillation) -> Callable:
    """(state, batch, key) -> {'trajectory': [b n f h w c], 'latents': [b f h w c]}: the states of the student's chain
    for a policy gradient and the x0 that it ends in, to be decoded and scored outside (Alg. 2, lines 5-11).
    """

    def follow(state: DollarState, batch: dict, key: Key) -> dict:
        keys = example_keys(key, state.step, batch["text"].shape[0])
        trajectory, x0 = setup.trajectory(state.student, batch, keys)
        return {"trajectory": trajectory, "latents": x0}

    return follow
