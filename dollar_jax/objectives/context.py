"""The view that an objective of the generator has of one update."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Array, Float

from dollar_jax.diffusion import Points, Schedule, Span
from dollar_jax.errors import UserError
from dollar_jax.sampling import Denoiser, Keys
from dollar_jax.types import Condition, Latent, PerExample

Units = Literal["raw", "deviations"]


@dataclass(frozen=True)
class Context:
    """The networks and the batch of one generator update. An objective is `(context, **options) -> ([b], metrics)`.

    Attributes:
      schedule: a_t and b_t, and the times.
      student: the denoiser in training; gradients flow through its parameters.
      ema: the denoiser with the student's averaged parameters; frozen.
      teacher: teacher(guidance) is the frozen denoiser at that guidance weight w.
      fake_score: the denoiser of the student's distribution; frozen here.
      reward_model: (latents, condition) -> [b], in the reward's own units; frozen here.
      own: the objective's own network, `own(*arguments)`: frozen in the objective, in training in its `Own.loss`. None
        for an objective without one.
      latents: clean latents of the data, [b f h w c].
      condition: the captions' embeddings, b of them.
      negative: the condition (b = 1) that guidance moves away from.
      empty: the condition (b = 1) of the empty caption.
      generated: the student's one-step x0 at its own times (Alg. 1, line 8), with gradient.
      matched_times: the span of times at which `generated` is compared with data, for each example.
      keys: [b], independent for each objective.
      times: the student's.
      sample: sample(k) is the end of the student's whole chain from pure noise, with a gradient through its last k
        calls.
      pixel_reward: latents -> [b], the reward of the decoded videos, differentiable.
      deviation: the reward's running deviation.
      trajectory: states of a chain along `policy_gradient.path`, drawn from the student as it is;
      reward, advantage: [b] of the videos in which these end, and the same less a baseline. None, all three, where no
        policy gradient asks for them.
    """

    schedule: Schedule
    student: Denoiser
    ema: Denoiser
    teacher: Callable[[float], Denoiser]
    fake_score: Denoiser
    reward_model: Callable[[Latent, Condition], PerExample]
    own: Callable[..., Any] | None
    latents: Latent
    condition: Condition
    negative: Condition
    empty: Condition
    generated: Latent
    matched_times: Span
    keys: Keys
    times: Points
    sample: Callable[[int], Latent]
    pixel_reward: Callable[[Latent], PerExample]
    deviation: Float[Array, ""]
    trajectory: Float[Array, "b n f h w c"] | None
    reward: PerExample | None
    advantage: PerExample | None


def in_units(reward: PerExample, deviation: Float[Array, ""], units: Units) -> PerExample:
    """A reward, or a difference of rewards, as it is (raw) or in its running deviations.

    Raises:
      UserError: other units.
    """
    match units:
        case "raw":
            return reward
        case "deviations":
            return reward / deviation
        case _:
            raise UserError(f"a reward's units are raw or deviations, not {units!r}")
