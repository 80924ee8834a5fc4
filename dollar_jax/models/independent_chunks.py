"""The paper's long videos: chunks that a causal autoencoder sees one by one, 16 frames <-> 5 latent frames.

A causal autoencoder of temporal ratio 4 turns 4k + 1 frames into k + 1 latent frames. Each chunk gets its first frame
repeated in front, which decoding drops again: 128 frames <-> 40 latent frames. No frame depends on another chunk, and
any autoencoder with `encode` and `decode` methods will do.
"""

import jax
from einops import rearrange

from dollar_jax.errors import UserError
from dollar_jax.models.convolution import repeat_first
from dollar_jax.models.network import Network
from dollar_jax.types import Latent, Params, Video


def encode(autoencoder: Network, params: Params, video: Video, chunk: int = 16) -> tuple[Latent, Latent]:
    """Mean and log variance of the latents, `chunk` frames at a time: f = (frames / chunk) (chunk / ratio + 1).

    Raises:
      UserError: the frames are no multiple of `chunk`.
    """
    if video.shape[1] % chunk:
        raise UserError(f"{video.shape[1]} frames are not made of chunks of {chunk}: give a multiple of {chunk}")
    chunks = rearrange(video, "b (n f) h w c -> n b f h w c", f=chunk)
    latents = jax.lax.map(lambda x: autoencoder.apply(params, repeat_first(x, 1), method="encode"), chunks)
    return jax.tree.map(lambda z: rearrange(z, "n b f h w c -> b (n f) h w c"), latents)


def decode(autoencoder: Network, params: Params, latents: Latent, chunk: int = 5) -> Video:
    """The video of latents that `encode` made, `chunk` latent frames at a time.

    Raises:
      UserError: the latent frames are no multiple of `chunk`.
    """
    if latents.shape[1] % chunk:
        raise UserError(
            f"{latents.shape[1]} latent frames are not made of chunks of {chunk}: give a multiple of {chunk}"
        )
    chunks = rearrange(latents, "b (n f) h w c -> n b f h w c", f=chunk)
    videos = jax.lax.map(lambda z: autoencoder.apply(params, z, method="decode")[:, 1:], chunks)
    return rearrange(videos, "n b f h w c -> b (n f) h w c")
