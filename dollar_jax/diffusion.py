"""Diffusion without networks: schedules and their times, the forward process, prediction types and reverse steps.

Notation: `dollar_jax.types`. `Schedule.at` returns coefficients in a shape that broadcasts with latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dollar_jax.errors import UserError
from dollar_jax.types import Latent, Times

PredictionType = Literal["conjugate", "v", "eps", "flow", "x0"]
Spacing = Literal["trailing", "unipc", "euler", "stretched"]  # see `Schedule.spaced`
Coefficient = Float[Array, "b 1 1 1 1"]
Points = Sequence[float | int]  # times, of a student or of a grid
Span = tuple[Times, Times]  # half-open intervals of times (first, second], one per example


@dataclass(frozen=True)
class Schedule:
    """A noise schedule: signal a_t and noise b_t of x_t = a_t x0 + b_t eps (Eq. 1), and the training times.

    A time is the number that the network gets as input: 0 .. 999 for DDPM, 1000 sigma for rectified flow. It may be any
    real number from `clean` to the last time; a and b are interpolated between the entries of the table. With spacing
    unipc the network gets a time without its fraction (`network_times`), as from diffusers' scheduler of this name.

    Attributes:
      signal, noise: tables of a and b at the times clean, clean + 1, clean + 2, ..
      clean: the time of the clean sample, where a = 1 and b = 0.
      times: the training times of a network, ascending; a uniform draw of a time is a draw from this list.
      spacing: rule for the times of sampling steps, see `spaced`.
      shift: s of a flow, see `flow_schedule`.
    """

    signal: Float[np.ndarray, " rows"]
    noise: Float[np.ndarray, " rows"]
    clean: float
    times: Float[np.ndarray, " T"]
    spacing: Spacing = "trailing"
    shift: float = 1.0

    def at(self, times: Times) -> tuple[Coefficient, Coefficient]:
        """(a_t, b_t) at times [b], each [b 1 1 1 1]."""
        return _between_rows((self.signal, self.noise), times - self.clean)

    @property
    def last(self) -> float:
        """The last training time, which has the most noise."""
        return float(self.times[-1])

    def spaced(self, count: int) -> tuple[float, ...]:
        """The times of `count` sampling steps, ascending.

        trailing: training times at equal distances in their list, ending at the last one. DDPM: 50 -> (19, 39, ..,
        999), 4 -> (249, 499, 749, 999). Flow with shift 5: 4 -> (625, 833.3, 937.5, 1000). The others are for flows
        alone, and take sigma = S(u), the shift S at equally spaced u from 1 downwards:

        unipc: diffusers' UniPC, u = 1 .. 1 / T of count + 1, without the last; the first sigma is 1e-6 less than 1.
        euler: diffusers' Euler, u = 1 .. S(1 / T), so the shift is applied twice.
        stretched: diffusers' Euler with `stretched_euler`'s shift and terminal, within 5e-4 of trailing.

        Raises:
          UserError: the schedule has fewer training times.
        """
        total = len(self.times)
        if not 0 < count <= total:
            raise UserError(f"{count} steps: the schedule has {total} training times, give 1 to {total}")
        match self.spacing:
            case "trailing":
                return tuple(self.times[np.round(np.arange(1, count + 1) * total / count).astype(int) - 1].tolist())
            case "unipc":
                sigma = shifted(np.linspace(1, 1 / total, count + 1)[:-1], self.shift)
                sigma[0] -= 1e-6
            case "euler":
                sigma = _euler(count, total, self.shift)
            case "stretched":
                shift, terminal = stretched_euler(count, self.shift)
                sigma = _euler(count, total, shift)
                if count > 1:
                    sigma = 1 - (1 - sigma) * (1 - terminal) / (1 - sigma[-1])
            case _:
                raise UserError(f"schedule.spacing is one of {', '.join(get_args(Spacing))}, not {self.spacing!r}")
        times = total * sigma[::-1]
        single = times.astype(np.float32)
        # 666.99999999 stays below 667 in float32: its integer part counts.
        return tuple(np.where(np.trunc(single) > np.trunc(times), np.nextafter(single, 0), times).tolist())

    def network_times(self, times: Times) -> Times:
        """What the network gets as its input at these times: the times, or with spacing unipc their integer part.

        The derivative of the integer part is that of the times.
        """
        if self.spacing != "unipc":
            return times
        return times + lax.stop_gradient(jnp.floor(jnp.minimum(times, self.last - 0.5)) - times)

    def require(self, times: Points, name: str) -> None:
        """Raises UserError, with `name` in front, if one of `times` is not in the interval (clean, last]."""
        for time in times:
            if not self.clean < time <= self.last:
                raise UserError(
                    f"{name}: {time:g} is no time of the schedule, above {self.clean:g} and up to {self.last:g}"
                )

    def rows(self, span: Span) -> tuple[Int[Array, " b"], Int[Array, " b"]]:
        """Index range of the training times in a span: the first index [b], and the last index plus 1 [b]."""
        return tuple(jnp.searchsorted(self._training_times, times, side="right") for times in span)

    @cached_property
    def _training_times(self) -> np.ndarray:
        return self.times.astype(np.float32)

    def training_time(self, index: Int[Array, " b"]) -> Times:
        """The training times at these indices [b]."""
        return jnp.asarray(self._training_times)[index]


@jax.jit  # so that a call outside of a program is one operation instead of twenty
def _between_rows(tables: tuple[Float[Array, " rows"], ...], place: Times) -> tuple[Coefficient, ...]:
    """Each table at these places [b] between its rows, [b 1 1 1 1]."""
    row = jnp.floor(place).astype(jnp.int32)
    share = place - row

    def interpolate(table):
        here, there = table[row], table[jnp.minimum(row + 1, len(table) - 1)]
        return (here + share * (there - here))[:, None, None, None, None]

    return tuple(interpolate(table) for table in tables)


def ddpm_schedule(
    steps: int = 1000,
    betas: Literal["linear", "scaled_linear"] = "scaled_linear",
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    zero_snr: bool = True,
    snr_shift: float = 1.0,
) -> Schedule:
    """The variance-preserving schedule a = sqrt(abar), b = sqrt(1 - abar) (Eq. 1); times are 0 .. T - 1, clean is -1.

    Args:
      steps: T, 1000 in the paper.
      betas: linear in beta, or in sqrt(beta) (`scaled_linear`, the public CogVideoX weights).
      beta_start, beta_end: the first and last beta.
      zero_snr: rescale so that the last time is pure noise, a = 0 exactly (arXiv 2305.08891, Alg. 1).
      snr_shift: divisor of the signal-to-noise ratio (CogVideoX: 3 for 2B, 1 for 5B).

    Raises:
      UserError: `betas` has another value.
    """
    match betas:
        case "linear":
            beta = np.linspace(beta_start, beta_end, steps)
        case "scaled_linear":
            beta = np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2
        case _:
            raise UserError(f"schedule.betas is linear or scaled_linear, not {betas!r}")
    abar = np.cumprod(1 - beta)
    abar = abar / (snr_shift + (1 - snr_shift) * abar)
    signal = np.sqrt(abar)
    if zero_snr:
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return _schedule(signal, np.sqrt(1 - signal**2), -1.0, np.arange(steps, dtype=np.float64), "trailing", 1.0)


def flow_schedule(steps: int = 1000, shift: float = 1.0, spacing: Spacing = "trailing") -> Schedule:
    """Rectified flow: a = 1 - sigma, b = sigma (Sec. 3.1); a time is T sigma, clean is 0.

    Args:
      steps: T, the number of training times.
      shift: s moves the training times towards noise, sigma = S(u) for u = 1 / T, 2 / T, .., 1, see `shifted`.
      spacing: rule for the times of sampling steps, see `Schedule.spaced`.
    """
    uniform = np.arange(1, steps + 1) / steps
    return _schedule(1 - uniform, uniform, 0.0, steps * shifted(uniform, shift), spacing, shift)


def shifted(uniform: np.ndarray | float, shift: float) -> np.ndarray | float:
    """S(u) = s u / (1 + (s - 1) u), which moves noise levels in 0..1 towards 1 for a shift s above 1."""
    return shift * uniform / (1 + (shift - 1) * uniform)


def stretched_euler(count: int, shift: float) -> tuple[float, float]:
    """(shift, terminal) with which diffusers' Euler comes closest to the trailing times of a flow with `shift`.

    Euler's u runs from 1 to almost 0 instead of 1 / n. With c = (n - 1) / n the trailing levels are S(1 - c (1 - u)),
    and 1 - S(1 - c (1 - u)) = k (1 - S'(u)) for s' = 1 + (s - 1) k and k = c / (s - (s - 1) c): a shift s' whose
    distance to 1 is scaled by k, so that the last level is the terminal 1 - k.
    """
    share = (count - 1) / count
    scale = share / (shift - (shift - 1) * share)
    return 1 + (shift - 1) * scale, 1 - scale


def _euler(count: int, steps: int, shift: float) -> np.ndarray:
    return shifted(np.linspace(1, shifted(1 / steps, shift), count), shift)


def _schedule(
    signal: np.ndarray, noise: np.ndarray, clean: float, times: np.ndarray, spacing: Spacing, shift: float
) -> Schedule:
    # Computed in float64: 1 - abar loses half its digits in float32 at small times.
    rows = np.concatenate([[1.0], signal]), np.concatenate([[0.0], noise])
    return Schedule(*(row.astype(np.float32) for row in rows), clean, times, spacing, shift)


def make_schedule(kind: Literal["ddpm", "flow"] = "ddpm", **parameters) -> Schedule:
    """The schedule with the kind and the parameters in a model's card.

    Raises:
      UserError: `kind` has another value.
    """
    match kind:
        case "ddpm":
            return ddpm_schedule(**parameters)
        case "flow":
            return flow_schedule(**parameters)
        case _:
            raise UserError(f"schedule.kind is ddpm or flow, not {kind!r}")


def check_prediction_type(prediction_type: PredictionType, schedule: Schedule) -> None:
    """Raises UserError for an unknown type, and for eps if the last time has no signal: eps then says nothing on x0."""
    if prediction_type not in get_args(PredictionType):
        raise _unknown(prediction_type)
    if prediction_type == "eps" and not schedule.signal[-1] > 0:
        raise UserError("prediction_type 'eps' needs signal at the schedule's last time: set schedule.zero_snr=False")


def forward(x0: Latent, eps: Latent, a: Coefficient, b: Coefficient) -> Latent:
    """x_t = a_t x0 + b_t eps (Eq. 1)."""
    return a * x0 + b * eps


def added_deviation(a_state: Coefficient, b_state: Coefficient, a: Coefficient, b: Coefficient) -> Coefficient:
    """beta of the forward process from a noisy state: x_t = (a / a_state) x_state + beta zeta, with normal zeta.

    beta^2 = b^2 - (a b_state / a_state)^2. From a clean state, a_state = 1 and b_state = 0, it is b.
    """
    return jnp.sqrt(jnp.maximum(b**2 - (a / a_state * b_state) ** 2, 0))


def forward_from(
    state: Latent, zeta: Latent, a_state: Coefficient, b_state: Coefficient, a: Coefficient, b: Coefficient
) -> tuple[Latent, Latent, Latent]:
    """Noises a noisy state further. Returns x_t and the (x0, eps) that a denoiser of its distribution regresses to.

    The mean of eps given x_t is -b times the score of x_t, however the states are distributed, and that of x0 follows
    from x_t = a x0 + b eps: eps = (b / beta) zeta, x0 = state / a_state - a b_state^2 / (a_state^2 beta) zeta, with
    beta from `added_deviation`. From a clean state they are the noise and the state themselves.
    """
    beta = added_deviation(a_state, b_state, a, b)
    x0 = state / a_state - a * (b_state / a_state) ** 2 / beta * zeta
    return a / a_state * state + beta * zeta, x0, b / beta * zeta


def to_x0_eps(
    prediction_type: PredictionType, v: Latent, x_t: Latent, a: Coefficient, b: Coefficient
) -> tuple[Latent, Latent]:
    """Converts the network's prediction `v` at x_t to (x0, eps), which satisfy x_t = a x0 + b eps.

    The prediction is v = x0 - eps for conjugate (Eq. 8), a eps - b x0 for v (Eq. 3), eps - x0 for flow, and eps or x0
    itself. The result is finite for conjugate, v and flow at every time; for eps where a > 0, for x0 where b > 0.

    Raises:
      UserError: unknown prediction type.
    """
    match prediction_type:
        case "conjugate":
            return (x_t + b * v) / (a + b), (x_t - a * v) / (a + b)
        case "flow":
            return (x_t - b * v) / (a + b), (x_t + a * v) / (a + b)
        case "v":
            square = a**2 + b**2
            return (a * x_t - b * v) / square, (b * x_t + a * v) / square
        case "eps":
            return (x_t - b * v) / a, v
        case "x0":
            return v, (x_t - a * v) / b
        case _:
            raise _unknown(prediction_type)


def from_x0_eps(prediction_type: PredictionType, x0: Latent, eps: Latent, a: Coefficient, b: Coefficient) -> Latent:
    """Converts (x0, eps) to a prediction, the network's regression target (Eq. 3, 4). Inverse of `to_x0_eps`.

    Raises:
      UserError: unknown prediction type.
    """
    match prediction_type:
        case "conjugate":
            return x0 - eps
        case "flow":
            return eps - x0
        case "v":
            return a * eps - b * x0
        case "eps":
            return eps
        case "x0":
            return x0
        case _:
            raise _unknown(prediction_type)


def _unknown(prediction_type: str) -> UserError:
    return UserError(f"a prediction_type is one of {', '.join(get_args(PredictionType))}, not {prediction_type!r}")


def guide(v: Latent, v_null: Latent, guidance: float | Coefficient) -> Latent:
    """Classifier-free guidance v + w (v - v_null) with the paper's weight w (Eq. 9); w = 0 is no guidance."""
    return v + guidance * (v - v_null)


def posterior_deviation(a: Coefficient, b: Coefficient, a_next: Coefficient, b_next: Coefficient) -> Coefficient:
    """Standard deviation of the posterior q(x_next | x_t, x0): b_next / b sqrt(b^2 - (a / a_next)^2 b_next^2).

    It is the sigma of Eq. 5: for the variance-preserving schedule its square is
    (1 - alpha)(1 - abar_next) / (1 - abar_t) with alpha = abar_t / abar_next.
    """
    return b_next / b * jnp.sqrt(jnp.maximum(b**2 - (a / a_next * b_next) ** 2, 0))


def reverse_step(
    x0: Latent, eps: Latent, z: Latent, a_next: Coefficient, b_next: Coefficient, sigma: Coefficient
) -> Latent:
    """x_next = a_next x0 + sqrt(b_next^2 - sigma^2) eps + sigma z (Eq. 5, corrected).

    sigma = 0 is DDIM; sigma = `posterior_deviation` is ancestral sampling; sigma = b_next replaces all noise (renoise).
    The paper prints sqrt(1 - abar_next); sqrt(1 - abar_next - sigma^2) is needed to keep the marginals.
    """
    return a_next * x0 + jnp.sqrt(jnp.maximum(b_next**2 - sigma**2, 0)) * eps + sigma * z
