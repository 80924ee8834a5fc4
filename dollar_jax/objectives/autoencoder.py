"""Losses of the VAE: reconstruction, and a weak KL divergence of the latents from a standard normal."""

import jax.numpy as jnp

from dollar_jax.types import Latent, PerExample, Video


def sample_posterior(mean: Latent, log_variance: Latent, eps: Latent) -> Latent:
    """Reparametrised sample z = mean + sigma eps of N(mean, sigma^2)."""
    return mean + jnp.exp(0.5 * log_variance) * eps


def reconstruction(video: Video, reconstructed: Video) -> PerExample:
    """||x - Dec(z)||^2, a mean over elements: PSNR = 10 log10(4 / loss) for videos in -1..1. [b]"""
    return jnp.mean((reconstructed - video) ** 2, axis=(1, 2, 3, 4))


def kl(mean: Latent, log_variance: Latent) -> PerExample:
    """KL(N(mean, sigma^2) || N(0, 1)) = (mean^2 + sigma^2 - 1 - log sigma^2) / 2, a mean over elements. [b]"""
    return jnp.mean(0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance), axis=(1, 2, 3, 4))
