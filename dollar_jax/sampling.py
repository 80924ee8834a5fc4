"""Sampling: networks as denoisers, the reverse process along a path of times, rollouts of the generator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float, Int, Key

from dollar_jax import diffusion
from dollar_jax.diffusion import Points, PredictionType, Schedule, Span
from dollar_jax.errors import UserError
from dollar_jax.types import Condition, Latent, Params, Times

Denoiser = Callable[[Latent, Times, Condition], tuple[Latent, Latent]]  # (x_t, t, condition) -> (x0, eps)
Guidance = float | tuple[float, float, float]  # w; or w from a time upwards, w below it, and that time
Sampler = Literal["ddim", "ancestral", "renoise"]  # with one step of memory; a teacher may also have a `unipc.Solver`
Keys = Key[Array, " b"]
MARGIN = 0.02  # of all training times; scores are hardly known closer to the ends, see `matched_times`


@dataclass(frozen=True)
class FlowMap:
    """A denoiser that is told to which times its step leads. Called like any other, it leads to the clean end.

    Attributes:
      towards: (x_t, t, condition, t') -> (x0, eps), with which one DDIM step from t reaches t'.
      clean: the schedule's clean time.
    """

    towards: Callable[[Latent, Times, Condition, Times], tuple[Latent, Latent]]
    clean: float

    def __call__(self, x_t: Latent, times: Times, condition: Condition) -> tuple[Latent, Latent]:
        return self.towards(x_t, times, condition, jnp.full_like(times, self.clean))


def timed(apply: Callable, schedule: Schedule) -> Callable:
    """`apply` with the schedule's times as its argument: the network gets `Schedule.network_times` of them."""

    def run(params, x_t, times, condition, *rest, **method):
        return apply(params, x_t, schedule.network_times(times), condition, *rest, **method)

    return run


def denoiser(
    apply: Callable,
    params: Params,
    prediction_type: PredictionType,
    schedule: Schedule,
    negative: Condition | None = None,
    guidance: Guidance = 0.0,
    flow_map: bool = False,
) -> Denoiser | FlowMap:
    """The network as a function (x_t, t, condition) -> (x0, eps), with classifier-free guidance (Eq. 8, 9).

    Args:
      apply: apply(params, x_t [b f h w c], times [b], condition) -> prediction [b f h w c].
      prediction_type: type of the network's prediction.
      negative: the condition (b = 1) that guidance moves away from: the empty caption, or a negative prompt. Needed if
        guidance is not 0.
      guidance: the paper's w. If it is not 0, the network gets one batch of 2 b: each example and its copy with the
        negative condition are neighbours, so that both are on one device.
      flow_map: whether the network is also told to which times a step leads, see `dollar_jax.models.flow_map`.
    """
    apply = timed(apply, schedule)

    def denoise(x_t, times, condition, *targets):
        targets = tuple(schedule.network_times(target) for target in targets)
        if guidance:
            away = repeat(negative, x_t.shape[0])
            pairs = (x_t, x_t), (times, times), (condition, away), *((target, target) for target in targets)
            both = apply(params, *(interleave(*pair) for pair in pairs))
            given, negated = rearrange(both.astype(jnp.float32), "(b pair) ... -> pair b ...", pair=2)
            weight = guidance
            if isinstance(guidance, tuple):
                above, below, boundary = guidance
                weight = jnp.where(times >= boundary, above, below)[:, None, None, None, None]
            prediction = diffusion.guide(given, negated, weight)
        else:
            prediction = apply(params, x_t, times, condition, *targets).astype(jnp.float32)
        return diffusion.to_x0_eps(prediction_type, prediction, x_t, *schedule.at(times))

    return FlowMap(denoise, schedule.clean) if flow_map else denoise


def repeat(condition: Condition, count: int) -> Condition:
    """Repeats the condition of one example (b = 1) to b = count."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), condition)


def interleave(one, other):
    """Merges two batches (pytrees): example i of both become neighbours, so that they are on one device."""
    return jax.tree.map(lambda a, b: rearrange([a, b], "pair b ... -> (b pair) ..."), one, other)


def normal(keys: Keys, shape: Sequence[int]) -> jax.Array:
    """Standard normal noise [b *shape]. Row i depends on key i only, not on how the batch is split or sharded."""
    return _normal(keys, tuple(shape))


@partial(jax.jit, static_argnames="shape")
def _normal(keys: Keys, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


@jax.jit
def fold(keys: Keys, stream: int | jax.Array) -> Keys:
    """Derives independent keys [b] for another random draw, numbered `stream`, of the same examples."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, stream)


def step_to(
    sampler: Sampler, schedule: Schedule, x0: Latent, eps: Latent, z: Latent, times: Times, following: Times
) -> Latent:
    """One reverse step (Eq. 5): x at the `following` times from the denoiser's x0 and eps at `times`.

    Args:
      z: noise, used by all samplers but ddim.

    Raises:
      UserError: unknown sampler.
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
    until: Int[Array, ""] | None = None,
) -> tuple[Latent, Float[Array, "n-1 b f h w c"]]:
    """Solves the reverse process along a path of n times, one path per example, in n - 1 calls of the network.

    Args:
      until: number of the steps to do, in as many calls of the network; x does not change in the others. None: all.
    Returns:
      x at the last times, and the state x_t before each step. A step from a time to the same time changes nothing.
    """

    def step(x_t, scanned):
        index, here, there = scanned
        jumps = isinstance(denoise, FlowMap) and sampler == "ddim"  # other samplers step from the clean x0
        x0, eps = denoise.towards(x_t, here, condition, there) if jumps else denoise(x_t, here, condition)
        z = jnp.zeros_like(x_t) if sampler == "ddim" else normal(fold(keys, index), x_t.shape[1:])
        moved = step_to(sampler, schedule, x0, eps, z, here, there)
        return jnp.where((here == there)[:, None, None, None, None], x_t, moved), x_t

    def unless_there(x_t, scanned):
        return lax.cond(scanned[0] < until, step, lambda x_t, scanned: (x_t, x_t), x_t, scanned)

    scanned = jnp.arange(path.shape[0] - 1), path[:-1], path[1:]
    return lax.scan(step if until is None else unless_there, x_t, scanned)


def sample(
    denoise: Denoiser,
    noise: Latent,
    condition: Condition,
    times: Points,
    schedule: Schedule,
    sampler: Sampler,
    keys: Keys,
) -> Latent:
    """Samples clean latents from pure noise: 50 DDIM steps for a teacher; 4, 2 or 1 steps for a student.

    Args:
      times: the times of the network calls, in any order (the paper lists them ascending). The result is the x0 of the
        last call.
    """
    path = path_of([*sorted(times, reverse=True), schedule.clean], noise.shape[0])
    return solve(denoise, noise, condition, path, schedule, sampler, keys)[0]


def path_of(times: Points, count: int) -> Float[Array, "n b"]:
    """A path for `solve`: the same times for each of `count` examples."""
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
    shared_time: bool,
) -> tuple[Latent, Times]:
    """Draws the generator's input: x_t at a random time of the student for each example.

    The result has no gradient: Eq. 12 differentiates the one-step x0 from this x_t only.

    Args:
      kind: data noises training latents (Sec. 3.3); simulate samples x_t with the student from pure noise, as at
        inference (backward simulation).
      shared_time: whether all examples get the same time. The simulation then ends there, after (n - 1) / 2 calls on
        average in place of n - 1 for n times.

    Returns:
      x_t [b f h w c] and its times [b].

    Raises:
      UserError: `kind` has another value.
    """
    ordered = jnp.asarray(sorted(times, reverse=True), jnp.float32)
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(times)))(fold(keys, 0))
    if shared_time:
        drawn = jnp.broadcast_to(drawn[0], drawn.shape)
    noise = normal(fold(keys, 1), latents.shape[1:])
    match kind:
        case "data":
            x_t = diffusion.forward(latents, noise, *schedule.at(ordered[drawn]))
        case "simulate":
            path = path_of(sorted(times, reverse=True), latents.shape[0])
            walk = noise, condition, path, schedule, sampler, fold(keys, 2)
            if shared_time:
                x_t, _ = solve(student, *walk, until=drawn[0])
            else:
                last, visited = solve(student, *walk)
                visited = jnp.concatenate([visited, last[None]])
                x_t = jax.vmap(lambda states, index: states[index], (1, 0))(visited, drawn)
        case _:
            raise UserError(f"generator.rollout is data or simulate, not {kind!r}")
    return lax.stop_gradient(x_t), ordered[drawn]


def matched_times(
    kind: Literal["all", "segment", "trajectory"], generated_at: Times, times: Points, schedule: Schedule
) -> Span:
    """The span of times at which generated samples are compared with data, for each example.

    all: every time, as in the paper. The fake score then sees one mixture of samples from all times of the student, and
    the mixture comes to match data: the late steps spread too far and make up for the first, which spreads too little.
    segment: from the student's next time (exclusive) to `generated_at`. The time then tells the fake score which step
    of the student made the sample, and each step must match data by itself, down to the noise level of the next step.
    trajectory: as segment, but noise is added to the state at the student's next time, not to the sample: what is
    compared is what the sampler visits (TDM, arXiv 2503.06674; Phased DMD, arXiv 2510.27684). It differs where a
    sampler reuses noise, as ddim. Times begin `MARGIN` later: right after the next time hardly any noise is added, and
    its score has no bound.

    Args:
      generated_at: the time of the student at which each sample was generated, [b].
      times: all times of the student.

    Raises:
      UserError: `kind` has another value.
    """
    match kind:
        case "all":
            return all_times(schedule, len(generated_at))
        case "segment":
            return next_times(generated_at, times, schedule), generated_at
        case "trajectory":
            following = next_times(generated_at, times, schedule)
            first, end = schedule.rows((following, generated_at))
            first = jnp.minimum(first + round(MARGIN * len(schedule.times)), end - 1)
            return jnp.where(first > 0, schedule.training_time(first - 1), following), generated_at
        case _:
            raise UserError(f"generator.matched_times is all, segment or trajectory, not {kind!r}")


def all_times(schedule: Schedule, count: int) -> Span:
    """The span of all training times, for each of `count` examples."""
    return jnp.full(count, schedule.clean), jnp.full(count, schedule.last)


def next_times(generated_at: Times, times: Points, schedule: Schedule) -> Times:
    """The student's next time in its chain after each of `generated_at`; `schedule.clean` after the last one."""
    ordered = jnp.asarray(sorted(times), jnp.float32)
    return jnp.where(ordered[None, :] < generated_at[:, None], ordered[None, :], schedule.clean).max(axis=1)


def draw_times(keys: Keys, schedule: Schedule, span: Span, low: float = 0.0, high: float = 1.0) -> Times:
    """Draws training times [b] uniformly from a span, between the fractions `low` and `high` of all training times.

    If the span has no training time between these fractions, the result is the nearest one that is between them.
    """
    count = len(schedule.times)
    low, high = round(low * count), round(high * count)
    first, end = schedule.rows(span)
    first = jnp.clip(first, low, high - 1)
    end = jnp.clip(end, first + 1, high)
    index = jax.vmap(lambda key, first, end: jax.random.randint(key, (), first, end))(keys, first, end)
    return schedule.training_time(index)
