"""The arguments of an objective: networks and batch of one generator update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxtyping import Array, Float, Int

from dollar_jax.diffusion import Points, Schedule, Span
from dollar_jax.errors import UserError
from dollar_jax.sampling import Denoiser, Keys
from dollar_jax.types import Condition, Latent, PerExample, Times

Units = Literal["raw", "deviations"]
Features = Callable[[Latent, Times, Condition, Sequence[float]], Sequence[Float[Array, "b n d"]]]


class Trajectories(NamedTuple):
    """Chains of the student that a policy gradient learns from.

    Attributes:
      states: the states along `policy_gradient.path`, the last one included.
      condition: conditions of their captions.
      reward: reward of the video at the end of each chain.
      advantage: `reward` minus a baseline, or `policy_gradient.group_advantage`.
    """

    states: Float[Array, "b n f h w c"]
    condition: Condition
    reward: PerExample
    advantage: PerExample


@dataclass(frozen=True)
class Context:
    """Networks and batch of one generator update. An objective is `(context, **options) -> ([b], metrics)`.

    Attributes:
      schedule: noise schedule, with a_t, b_t and the training times.
      student: the student as a denoiser, with gradient in its parameters.
      differentiable_student: the student, frozen, as a denoiser through which `jax.jvp` can differentiate.
      start: the student as it was at the start of the run, as a denoiser; frozen. None unless an objective needs it.
      ema: the student with averaged parameters, as a denoiser; frozen.
      teacher: teacher(guidance) is the teacher as a denoiser with guidance weight w; frozen.
      fake_score: the fake score as a denoiser; frozen.
      features: (x_t, times, condition, depths) -> [b n d] for each of `depths`: the fake score's tokens after these
        shares of its blocks; frozen. Not every transformer has them, see `models.roles`.
      reward_model: latent reward model, (latents, condition) -> [b] in the reward's own units; frozen.
      own: the objective's own network, called as `own(*arguments)`: frozen in the objective, in training in its
        `Own.loss`. None for an objective without one.
      latents: clean latents of the data, [b f h w c]; None if the data are prompts alone, see `needs`.
      condition: condition of the captions, b rows.
      negative: the condition (b = 1) that guidance moves away from.
      empty: the condition (b = 1) of the empty caption.
      generated: the student's one-step x0 at one of its times (Alg. 1, line 8), with gradient, [b f h w c].
      matched_times: for each example, the span of times at which `generated` is compared with data.
      generated_at: the time of the student from which each example was generated.
      state: the state to which noise is added to compare `generated` with data, without gradient: `generated`, or with
        `generator.matched_times` "trajectory" the state at the student's next time.
      state_at: times of `state` [b]; the schedule's clean time for `generated`.
      keys: random keys [b], independent for each objective.
      step: number of updates of the student so far.
      times: times of the student.
      sample: sample(k) runs the student's whole chain from pure noise and returns its end, with a gradient through the
        last k calls.
      pixel_reward: differentiable reward of the decoded videos, latents -> [b].
      deviation: running standard deviation of the reward.
      trajectories: chains of the current student with their rewards; None without a policy gradient.
    """

    schedule: Schedule
    student: Denoiser
    differentiable_student: Denoiser
    start: Denoiser | None
    ema: Denoiser
    teacher: Callable[[float], Denoiser]
    fake_score: Denoiser
    features: Features
    reward_model: Callable[[Latent, Condition], PerExample]
    own: Callable[..., Any] | None
    latents: Latent | None
    condition: Condition
    negative: Condition
    empty: Condition
    generated: Latent
    matched_times: Span
    generated_at: Times
    state: Latent
    state_at: Times
    keys: Keys
    step: Int[Array, ""]
    times: Points
    sample: Callable[[int], Latent]
    pixel_reward: Callable[[Latent], PerExample]
    deviation: Float[Array, ""]
    trajectories: Trajectories | None


def in_units(reward: PerExample, deviation: Float[Array, ""], units: Units) -> PerExample:
    """A reward, or a difference of rewards, in its own units (raw) or divided by its running deviation (deviations).

    Raises:
      UserError: unknown units.
    """
    match units:
        case "raw":
            return reward
        case "deviations":
            return reward / deviation
        case _:
            raise UserError(f"a reward's units are raw or deviations, not {units!r}")
