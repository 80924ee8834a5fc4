import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.errors import UserError
from dollar_jax.models import independent_chunks
from dollar_jax.models.network import Network


def apply(params, x, method):
    """A causal autoencoder of ratio 4 without parameters: a latent frame is the mean of its frames."""
    if method == "encode":
        groups = x[:, 1:].reshape(len(x), -1, 4, *x.shape[2:])
        mean = jnp.concatenate([x[:, :1], groups.mean(axis=2)], axis=1)
        return mean, -mean
    return jnp.concatenate([x[:, :1], jnp.repeat(x[:, 1:], 4, axis=1)], axis=1)


AUTOENCODER = Network(init=lambda key: {}, apply=apply)


def test_each_chunk_of_16_frames_becomes_5_latents_on_its_own():
    video = jnp.arange(2 * 128.0).reshape(2, 128, 1, 1, 1) * jnp.ones((1, 1, 2, 2, 3))
    mean, log_variance = independent_chunks.encode(AUTOENCODER, {}, video)
    assert mean.shape == (2, 40, 2, 2, 3)
    frames = np.asarray(video[:, :, 0, 0, 0])
    for chunk in range(8):
        first = 16 * chunk
        expected = [frames[:, first], *(frames[:, first + i : first + i + 4].mean(axis=1) for i in (0, 4, 8, 12))]
        np.testing.assert_allclose(mean[:, 5 * chunk : 5 * chunk + 5, 0, 0, 0], np.stack(expected, axis=1))
    np.testing.assert_array_equal(log_variance, -mean)


def test_decoding_drops_the_repeated_frame():
    latents = jnp.arange(40.0).reshape(1, 40, 1, 1, 1) * jnp.ones((1, 1, 2, 2, 3))
    video = independent_chunks.decode(AUTOENCODER, {}, latents)
    expected = [latent for latent in range(40) if latent % 5 for _ in range(4)]
    assert video.shape == (1, 128, 2, 2, 3)
    np.testing.assert_array_equal(video[0, :, 0, 0, 0], expected)


def test_frames_that_make_no_chunks():
    with pytest.raises(UserError, match="20 frames"):
        independent_chunks.encode(AUTOENCODER, {}, jnp.zeros((1, 20, 2, 2, 3)))
    with pytest.raises(UserError, match="12 latent frames"):
        independent_chunks.decode(AUTOENCODER, {}, jnp.zeros((1, 12, 2, 2, 3)))
