"""A world in which everything is known: x0 ~ N(mean, deviation^2), element by element."""

from dataclasses import dataclass

import jax.numpy as jnp


@dataclass(frozen=True)
class Gaussian:
    """Denoiser, score and probability flow of Gaussian data under a schedule, in closed form."""

    mean: float
    deviation: float
    schedule: object

    def variance(self, times):
        """Of x_t."""
        a, b = self.schedule.at(times)
        return (a * self.deviation) ** 2 + b**2

    def __call__(self, x_t, times, condition=None):
        """The optimal denoiser (x0, eps)."""
        a, b = self.schedule.at(times)
        x0 = self.mean + a * self.deviation**2 / self.variance(times) * (x_t - a * self.mean)
        return x0, (x_t - a * x0) / jnp.where(b > 0, b, 1)

    def score(self, x_t, times):
        """grad log p_t(x_t)."""
        a, _ = self.schedule.at(times)
        return -(x_t - a * self.mean) / self.variance(times)

    def flow(self, x_t, times):
        """Where the probability flow takes x_t at the clean end: the same quantile."""
        a, _ = self.schedule.at(times)
        return self.mean + self.deviation * (x_t - a * self.mean) / jnp.sqrt(self.variance(times))
