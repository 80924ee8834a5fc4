"""What an objective of the generator may look at."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array, Bool, Float

from dollar_jax.diffusion import Schedule
from dollar_jax.notation import Latent, PerExample, Text
from dollar_jax.sampling import Denoiser, Keys, Span


@dataclass(frozen=True)
class Context:
    """The networks and the batch of one generator update. An objective is `(context, **options) -> ([b], metrics)`.

    Attributes:
      schedule: a_t and b_t.
      student: the denoiser that is trained; gradients flow through its parameters.
      ema: the denoiser with the student's averaged parameters; frozen.
      teacher: teacher(guidance) is the frozen denoiser at that guidance weight w.
      fake_score: the denoiser of the student's distribution; frozen here.
      reward_model: (latents, text, text_mask) -> [b], in units of the reward's running deviation; frozen here.
      latents: clean latents of the data, [b f h w c].
      text, text_mask: [b l d] and [b l], True where a token is real.
      generated: the student's one-step x0 at its own times (Alg. 1, line 8), with gradient.
      matched_times: the first time and the one after the last, [b] each, at which `generated` is compared with data.
      keys: [b], independent for each objective.
      times: the student's.
      sample: sample(k) is the end of the student's whole chain from pure noise, with a gradient through its last k
        calls.
      pixel_reward: latents -> [b], the reward of the decoded videos, differentiable.
      trajectory: states of a chain along `policy_gradient.path(times)`, drawn from the student as it is;
      reward, normalized_reward: [b] of the videos in which these end, raw and in running deviations from its mean.
        None, all three, where no policy gradient asks for them.
    """

    schedule: Schedule
    student: Denoiser
    ema: Denoiser
    teacher: Callable[[float], Denoiser]
    fake_score: Denoiser
    reward_model: Callable[[Latent, Text, Array], PerExample]
    latents: Latent
    text: Text
    text_mask: Bool[Array, "b l"]
    generated: Latent
    matched_times: Span
    keys: Keys
    times: tuple[int, ...]
    sample: Callable[[int], Latent]
    pixel_reward: Callable[[Latent], PerExample]
    trajectory: Float[Array, "b n f h w c"] | None
    reward: PerExample | None
    normalized_reward: PerExample | None
