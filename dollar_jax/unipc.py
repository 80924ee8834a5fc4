"""UniPC (arXiv 2302.04867), the multistep solver that the public Wan models are sampled with.

Notation: x_t = a x0 + b eps with a = 1 - sigma and b = sigma, lambda = log(a / b), h = lambda_next - lambda, and
B = expm1(-h) (the paper's B_2). A step of order p uses the last p predictions of x0; every step is linear in them, so
its weights are computed once, in float64.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dollar_jax.diffusion import Points, Schedule
from dollar_jax.sampling import Denoiser
from dollar_jax.types import Condition, Latent

Solver = Literal["unipc", "unipc1"]  # order 2 or 1, each with its corrector; order 1 without one is DDIM
ORDER = {"unipc": 2, "unipc1": 1}


class Weights(NamedTuple):
    """Weights of one step for each entry: x at the start of the step, x0 there, x0 one step earlier, x0 at its end."""

    x: Float[Array, " n"]
    here: Float[Array, " n"]
    before: Float[Array, " n"]
    there: Float[Array, " n"]


def sample(
    denoise: Denoiser, noise: Latent, condition: Condition, times: Points, schedule: Schedule, solver: Solver
) -> Latent:
    """Samples clean latents from pure noise at these times, one call of the network each; the result is the last x0.

    At each time the network is called on the predicted x_t. Then the corrector replaces x_t, with that call's x0 as one
    more point, and the predictor goes on from there.
    """
    times = np.asarray(sorted(times, reverse=True))
    predictor, corrector = weights(times / schedule.last, ORDER[solver])

    def step(carry, scanned):
        predicted, x, here, before = carry
        time, correct, predict = scanned
        there, _ = denoise(predicted, jnp.full(len(noise), time), condition)
        x_t = correct.x * x + correct.here * here + correct.before * before + correct.there * there
        return (predict.x * x_t + predict.here * there + predict.before * here, x_t, there, here), None

    nothing = jnp.zeros_like(noise)
    carry = noise, noise, nothing, nothing
    inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (times, corrector, predictor))
    return lax.scan(step, carry, inputs)[0][0]


def weights(sigmas: Float[np.ndarray, " n"], order: int) -> tuple[Weights, Weights]:
    """Weights of the predictor's step from each of n noise levels, and of the corrector's step to each of them.

    The first level has no step to it: its corrector keeps x. Near the start and at the end, where less is known, the
    order is 1.

    Args:
      sigmas: descending, each below 1.
      order: 1 or 2.
    """
    # As diffusers has them: in float32, where the first, 1 - 1e-6, is rounded.
    b = np.append(sigmas.astype(np.float32), np.float32(0)).astype(np.float64)
    a = 1 - b
    with np.errstate(divide="ignore"):
        logs = np.log(a) - np.log(b)
    count, predictor, corrector = len(sigmas), [], [Weights(1.0, 0.0, 0.0, 0.0)]
    for i in range(count):
        known = 1 if i in (0, count - 1) else order
        ratio, change = b[i + 1] / b[i], np.expm1(logs[i] - logs[i + 1])
        earlier = (logs[i - 1] - logs[i]) / (logs[i + 1] - logs[i]) if known == 2 else np.inf  # r_1
        euler = -a[i + 1] * change  # the weight of x0 in a step of order 1

        def step(before: float, there: float, euler=euler, earlier=earlier, ratio=ratio):
            """x_next = ratio x + euler (x0 + before (x0_before - x0) / r_1 + there (x0_there - x0))."""
            lead = before / earlier
            return Weights(ratio, euler * (1 - lead - there), euler * lead, euler * there)

        predictor.append(step(0.5 if known == 2 else 0.0, 0.0))
        if i + 1 < count:
            corrector.append(step(*_corrections(logs[i] - logs[i + 1], earlier)))
    return tuple(Weights(*map(np.array, zip(*rows, strict=True))) for rows in (predictor, corrector))


def _corrections(minus_h: float, earlier: float) -> tuple[float, float]:
    """Weights of the corrector's two differences, which make it exact for one more power of lambda than the predictor.

    rho_1 + rho_2 = phi_1 / B and rho_1 r_1 + rho_2 = 2 phi_2 / B, with phi_1 = B / -h - 1, phi_2 = phi_1 / -h - 1/2.
    At order 1 there is one difference, with weight 1/2.
    """
    if np.isinf(earlier):
        return 0.0, 0.5
    change = np.expm1(minus_h)
    first = change / minus_h - 1
    second = first / minus_h - 0.5
    return tuple(np.linalg.solve([[1.0, 1.0], [earlier, 1.0]], [first / change, 2 * second / change]))
