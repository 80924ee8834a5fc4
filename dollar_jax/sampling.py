"""From networks to samples: denoisers, the reverse process over any times, and the generator's rollouts."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float, Key

from dollar_jax import diffusion
from dollar_jax.diffusion import Points, PredictionType, Schedule, Span
from dollar_jax.errors import UserError
from dollar_jax.types import Condition, Latent, Params, Times

Denoiser = Callable[[Latent, Times, Condition], tuple[Latent, Latent]]  # (x_t, t, condition) -> (x0, eps)
Sampler = Literal["ddim", "ancestral", "renoise"]
Keys = Key[Array, " b"]


def denoiser(
    apply: Callable,
    params: Params,
    prediction_type: PredictionType,
    schedule: Schedule,
    negative: Condition | None = None,
    guidance: float = 0.0,
) -> Denoiser:
    """The network as a function (x_t, t, condition) -> (x0, eps), with classifier-free guidance (Eq. 8, 9).

    Args:
      apply: apply(params, x_t [b f h w c], times [b], condition) -> prediction [b f h w c].
      prediction_type: what the network predicts.
      negative: the condition (b = 1) that guidance moves away from: the empty caption's, or a negative prompt's;
        needed when guidance is not 0.
      guidance: the paper's w. Not 0: an example and its twin with the negative condition are neighbours in one doubled
        batch, so that both are on one device.
    """

    def denoise(x_t, times, condition):
        if guidance:
            away = repeat(negative, x_t.shape[0])
            both = apply(params, *(interleave(*pair) for pair in ((x_t, x_t), (times, times), (condition, away))))
            given, negated = rearrange(both.astype(jnp.float32), "(b pair) ... -> pair b ...", pair=2)
            prediction = diffusion.guide(given, negated, guidance)
        else:
            prediction = apply(params, x_t, times, condition).astype(jnp.float32)
        return diffusion.to_x0_eps(prediction_type, prediction, x_t, *schedule.at(times))

    return denoise


def repeat(condition: Condition, count: int) -> Condition:
    """A condition of one example for `count` of them."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), condition)


def interleave(one, other):
    """Two batches (pytrees) as one in which the examples of a pair are neighbours, and so on one device."""
    return jax.tree.map(lambda a, b: rearrange([a, b], "pair b ... -> (b pair) ..."), one, other)


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
    condition: Condition,
    path: Float[Array, "n b"],
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
        x0, eps = denoise(x_t, here, condition)
        z = jnp.zeros_like(x_t) if sampler == "ddim" else normal(fold(keys, index), x_t.shape[1:])
        moved = step_to(sampler, schedule, x0, eps, z, here, there)
        return jnp.where((here == there)[:, None, None, None, None], x_t, moved), x_t

    return lax.scan(step, x_t, (jnp.arange(path.shape[0] - 1), path[:-1], path[1:]))


def sample(
    denoise: Denoiser,
    noise: Latent,
    condition: Condition,
    times: Points,
    schedule: Schedule,
    sampler: Sampler,
    keys: Keys,
) -> Latent:
    """From pure noise to clean through `times`: 50-step DDIM for a teacher, 4, 2 or 1 steps for a student.

    `times` may come in any order (the paper lists them ascending); the last step lands on the denoiser's x0.
    """
    path = path_of([*sorted(times, reverse=True), schedule.clean], noise.shape[0])
    return solve(denoise, noise, condition, path, schedule, sampler, keys)[0]


def path_of(times: Points, count: int) -> Float[Array, "n b"]:
    """The same times for each of `count` examples."""
    return jnp.broadcast_to(jnp.asarray(times, jnp.float32)[:, None], (len(times), count))


def rollout(
    kind: Literal["data", "simulate"],
    student: Denoiser,
    latents: Latent,
    condition: Condition,
    times: Points,
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
    ordered = jnp.asarray(sorted(times, reverse=True), jnp.float32)
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(times)))(fold(keys, 0))
    noise = normal(fold(keys, 1), latents.shape[1:])
    match kind:
        case "data":
            x_t = diffusion.forward(latents, noise, *schedule.at(ordered[drawn]))
        case "simulate":
            path = path_of(sorted(times, reverse=True), latents.shape[0])
            last, visited = solve(student, noise, condition, path, schedule, sampler, fold(keys, 2))
            visited = jnp.concatenate([visited, last[None]])
            x_t = jax.vmap(lambda states, index: states[index], (1, 0))(visited, drawn)
        case _:
            raise UserError(f"generator.rollout is data or simulate, not {kind!r}")
    return lax.stop_gradient(x_t), ordered[drawn]


def matched_times(kind: Literal["all", "segment"], generated_at: Times, times: Points, schedule: Schedule) -> Span:
    """The span of times at which generated samples are compared with data, for each example.

    all: every time, the paper's. The fake score then sees samples from all times of the student in one mixture, and
    that is what matches data: the late steps spread too far to make up for the first, which spreads too little.
    segment: from the student's next time, exclusive, up to `generated_at`, so that the fake score at a time knows which
    step of the student it follows, and each step has to be right by itself down to the noise of the next.

    Args:
      generated_at: [b], of `times`.
      times: the student's.

    Raises:
      UserError: another kind.
    """
    match kind:
        case "all":
            return jnp.full_like(generated_at, schedule.clean), jnp.full_like(generated_at, schedule.last)
        case "segment":
            ordered = jnp.asarray(sorted(times), jnp.float32)
            earlier = jnp.where(ordered[None, :] < generated_at[:, None], ordered[None, :], schedule.clean)
            return earlier.max(axis=1), generated_at
        case _:
            raise UserError(f"generator.matched_times is all or segment, not {kind!r}")


def draw_times(keys: Keys, schedule: Schedule, span: Span, low: float = 0.0, high: float = 1.0) -> Times:
    """Uniform training times [b] in a span, between the fractions `low` and `high` of all of them.

    Where a span has no training time between these fractions, the nearest one between them is drawn.
    """
    count = len(schedule.times)
    low, high = round(low * count), round(high * count)
    first, end = schedule.rows(span)
    first = jnp.clip(first, low, high - 1)
    end = jnp.clip(end, first + 1, high)
    index = jax.vmap(lambda key, first, end: jax.random.randint(key, (), first, end))(keys, first, end)
    return schedule.training_time(index)
