"""Long videos as in the paper: a causal autoencoder processes independent chunks, 16 frames <-> 5 latent frames.

A causal autoencoder with temporal ratio 4 turns 4k + 1 frames into k + 1 latent frames. So each chunk gets a copy of
its first frame in front, which decoding drops: 128 frames <-> 40 latent frames. No frame depends on another chunk. Any
autoencoder with the methods `encode` and `decode` can be used.
"""

import jax
from einops import rearrange

from dollar_jax.errors import UserError
from dollar_jax.models.convolution import repeat_first
from dollar_jax.models.network import Network
from dollar_jax.types import Latent, Params, Video


def encode(autoencoder: Network, params: Params, video: Video, chunk: int = 16) -> tuple[Latent, Latent]:
    """Mean and log variance of the latents, with f = (frames / chunk) (chunk / ratio + 1) latent frames.

    Raises:
      UserError: the number of frames is not a multiple of `chunk`.
    """
    if video.shape[1] % chunk:
        raise UserError(f"{video.shape[1]} frames do not divide into chunks of {chunk}: give a multiple of {chunk}")
    chunks = rearrange(video, "b (n f) h w c -> n b f h w c", f=chunk)
    latents = jax.lax.map(lambda x: autoencoder.apply(params, repeat_first(x, 1), method="encode"), chunks)
    return jax.tree.map(lambda z: rearrange(z, "n b f h w c -> b (n f) h w c"), latents)


def decode(autoencoder: Network, params: Params, latents: Latent, chunk: int = 5) -> Video:
    """The video of latents from `encode`; `chunk` is in latent frames.

    Raises:
      UserError: the number of latent frames is not a multiple of `chunk`.
    """
    if latents.shape[1] % chunk:
        raise UserError(
            f"{latents.shape[1]} latent frames do not divide into chunks of {chunk}: give a multiple of {chunk}"
        )
    chunks = rearrange(latents, "b (n f) h w c -> n b f h w c", f=chunk)
    videos = jax.lax.map(lambda z: autoencoder.apply(params, z, method="decode")[:, 1:], chunks)
    return rearrange(videos, "n b f h w c -> b (n f) h w c")
