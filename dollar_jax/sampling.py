"""From networks to samples: denoisers, the reverse process over any times, and the generator's rollouts."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float, Int, Key

from dollar_jax import diffusion
from dollar_jax.diffusion import PredictionType, Schedule
from dollar_jax.errors import UserError
from dollar_jax.types import Latent, Params, Text, Times

Denoiser = Callable[[Latent, Times, Text], tuple[Latent, Latent]]  # (x_t, t, text) -> (x0, eps)
Sampler = Literal["ddim", "ancestral", "renoise"]
Keys = Key[Array, " b"]
Span = tuple[Times, Times]  # the first time and the one after the last


def denoiser(
    apply: Callable,
    params: Params,
    prediction_type: PredictionType,
    schedule: Schedule,
    null_text: Text | None = None,
    guidance: float = 0.0,
) -> Denoiser:
    """The network as a function (x_t, t, text) -> (x0, eps), with classifier-free guidance (Eq. 8, 9).

    Args:
      apply: apply(params, x_t [b f h w c], times [b], text [b l d]) -> velocity [b f h w c].
      prediction_type: what the network predicts.
      null_text: [1 l d], the embedding of the empty caption; needed when guidance is not 0.
      guidance: the paper's w. Not 0: an example and its twin without caption are neighbours in one doubled batch, so
        that both are on one device.
    """

    def denoise(x_t, times, text):
        if guidance:
            null = jnp.broadcast_to(null_text, text.shape)
            pairs = [(x_t, x_t), (times, times), (text, null)]
            both = apply(params, *(rearrange(list(pair), "pair b ... -> (b pair) ...") for pair in pairs))
            with_text, without = rearrange(both.astype(jnp.float32), "(b pair) ... -> pair b ...", pair=2)
            v = diffusion.guide(with_text, without, guidance)
        else:
            v = apply(params, x_t, times, text).astype(jnp.float32)
        return diffusion.to_x0_eps(prediction_type, v, x_t, *schedule.at(times))

    return denoise


def normal(keys: Keys, shape: Sequence[int]) -> jax.Array:
    """Standard normal noise [b *shape], row i from key i: the same numbers however the batch is cut or sharded."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape)))(keys)


def fold(keys: Keys, stream: int | jax.Array) -> Keys:
    """Independent keys [b] for another use of the same examples."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, stream)


def step_to(
    sampler: Sampler, schedule: Schedule, x0: Latent, eps: Latent, z: Latent, times: Times, following: Times
) -> Latent:
    """x at the `following` times from what the denoiser says at `times`, by one reverse step (Eq. 5) of a sampler.

    Raises:
      UserError: another sampler.
    """
    a, b = schedule.at(times)
    a_next, b_next = schedule.at(following)
    match sampler:
        case "ddim":
            sigma = jnp.zeros_like(b)
        case "ancestral":
            sigma = diffusion.posterior_deviation(a, b, a_next, b_next)
        case "renoise":
            sigma = b_next
        case _:
            raise UserError(f"a sampler is one of {', '.join(get_args(Sampler))}, not {sampler!r}")
    return diffusion.reverse_step(x0, eps, z, a_next, b_next, sigma)


def solve(
    denoise: Denoiser,
    x_t: Latent,
    text: Text,
    path: Int[Array, "n b"],
    schedule: Schedule,
    sampler: Sampler,
    keys: Keys,
) -> tuple[Latent, Float[Array, "n-1 b f h w c"]]:
    """Reverse steps along a path of times, each example on its own: n times are n - 1 calls of the network.

    Returns:
      x at the last times, and the x_t from which each step was taken. A step from a time to itself stands still.
    """

    def step(x_t, scanned):
        index, here, there = scanned
        x0, eps = denoise(x_t, here, text)
        z = jnp.zeros_like(x_t) if sampler == "ddim" else normal(fold(keys, index), x_t.shape[1:])
        moved = step_to(sampler, schedule, x0, eps, z, here, there)
        return jnp.where((here == there)[:, None, None, None, None], x_t, moved), x_t

    return lax.scan(step, x_t, (jnp.arange(path.shape[0] - 1), path[:-1], path[1:]))


def sample(
    denoise: Denoiser,
    noise: Latent,
    text: Text,
    times: Sequence[int],
    schedule: Schedule,
    sampler: Sampler,
    keys: Keys,
) -> Latent:
    """From pure noise to clean through `times`: 50-step DDIM for a teacher, 4, 2 or 1 steps for a student.

    `times` may come in any order (the paper lists them ascending); the last step lands on the denoiser's x0.
    """
    path = jnp.asarray([*sorted(times, reverse=True), -1])
    path = jnp.broadcast_to(path[:, None], (len(path), noise.shape[0]))
    return solve(denoise, noise, text, path, schedule, sampler, keys)[0]


def rollout(
    kind: Literal["data", "simulate"],
    student: Denoiser,
    latents: Latent,
    text: Text,
    times: Sequence[int],
    schedule: Schedule,
    sampler: Sampler,
    keys: Keys,
) -> tuple[Latent, Times]:
    """The generator's input: x_t at one of the student's times, drawn for each example.

    data: noised training latents (Sec. 3.3). simulate: where the student itself arrives from pure noise, as at
    inference. No gradient passes: Eq. 12 differentiates the one-step x0 from here only.

    Returns:
      x_t [b f h w c] and its times [b].

    Raises:
      UserError: another kind.
    """
    ordered = jnp.asarray(sorted(times, reverse=True))
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(times)))(fold(keys, 0))
    noise = normal(fold(keys, 1), latents.shape[1:])
    match kind:
        case "data":
            x_t = diffusion.forward(latents, noise, *schedule.at(ordered[drawn]))
        case "simulate":
            path = jnp.broadcast_to(ordered[:, None], (len(times), latents.shape[0]))
            last, visited = solve(student, noise, text, path, schedule, sampler, fold(keys, 2))
            visited = jnp.concatenate([visited, last[None]])
            x_t = jax.vmap(lambda states, index: states[index], (1, 0))(visited, drawn)
        case _:
            raise UserError(f"generator.rollout is data or simulate, not {kind!r}")
    return lax.stop_gradient(x_t), ordered[drawn]


def matched_times(kind: Literal["all", "segment"], generated_at: Times, times: Sequence[int], count: int) -> Span:
    """The times [first, end) at which generated samples are compared with data, for each example.

    all: 0 .. count, the paper's. The fake score then sees samples from all times of the student in one mixture, and
    that is what matches data: the late steps spread too far to make up for the first, which spreads too little.
    segment: from the student's next time up to `generated_at`, its own, so that the fake score at a time knows which
    step of the student it follows, and each step has to be right by itself down to the noise of the next.

    Args:
      generated_at: [b], of `times`.

    Raises:
      UserError: another kind.
    """
    match kind:
        case "all":
            return jnp.zeros_like(generated_at), jnp.full_like(generated_at, count)
        case "segment":
            ordered = jnp.asarray(sorted(times))
            earlier = jnp.where(ordered[None, :] < generated_at[:, None], ordered[None, :], -1)
            return earlier.max(axis=1) + 1, generated_at + 1
        case _:
            raise UserError(f"generator.matched_times is all or segment, not {kind!r}")


def clip_times(span: Span, low: int, high: int) -> Span:
    """The part of a span inside [low, high); the nearest time there, where no part of it is."""
    first = jnp.clip(span[0], low, high - 1)
    return first, jnp.clip(span[1], first + 1, high)


def draw_times(keys: Keys, span: Span) -> Times:
    """Uniform times [b] in `span`."""
    return jax.vmap(lambda key, first, end: jax.random.randint(key, (), first, end))(keys, *span)
