import jax
import jax.numpy as jnp
import numpy as np

from dollar_jax.objectives.autoencoder import kl, reconstruction, sample_posterior


def test_kl_of_two_numbers_by_hand():
    # N(0, 1) costs nothing; N(2, e): (4 + e - 1 - 1) / 2 = 1 + e / 2.
    mean, log_variance = jnp.zeros((2, 1, 1, 1, 3)).at[1].set(2.0), jnp.zeros((2, 1, 1, 1, 3)).at[1].set(1.0)
    np.testing.assert_allclose(kl(mean, log_variance), [0, 1 + np.e / 2], rtol=1e-6)


def test_kl_is_that_of_samples():
    shape = (1, 4, 32, 32, 16)
    mean, log_variance = jnp.full(shape, 0.7), jnp.full(shape, -1.2)
    eps = jax.random.normal(jax.random.key(0), shape)
    z = sample_posterior(mean, log_variance, eps)
    # E_q[log q - log p] with the samples
    sampled = jnp.mean(0.5 * (z**2 - eps**2 - log_variance))
    np.testing.assert_allclose(kl(mean, log_variance)[0], sampled, rtol=2e-2)


def test_reconstruction_keeps_examples_apart():
    video = jnp.zeros((2, 2, 2, 2, 3))
    np.testing.assert_allclose(reconstruction(video, video.at[1, 0].set(0.5)), [0, 0.125])
