"""Latent reward models: a small CNN on latents, with cross-attention to the text if the reward reads captions.

The numbers of parameters are those of Tab. 12 (image) and Tab. 13 (text-image) of the paper. The 2D model is averaged
over the latent frames of a video; a 3D CNN can be the backbone (Tab. 11).
"""

from functools import partial

import jax
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from dollar_jax.errors import UserError
from dollar_jax.models.attention import attention
from dollar_jax.models.network import Network, from_module
from dollar_jax.types import Condition, Latent, PerExample, Text

WIDTH, GROUPS = 128, 32


def build(channels: int = 12, text_width: int | None = None, backbone: str = "2d") -> Network:
    """Builds `apply(params, latents [b f h w c], condition) -> reward [b]`.

    Args:
      channels: number of channels of the latents.
      text_width: width of the captions' embeddings; None for a reward that does not read captions.
      backbone: '2d' averages over frames, '3d' also convolves over them.
    Raises:
      UserError: unknown backbone.
    """
    if backbone not in ("2d", "3d"):
        raise UserError(f"backbone is 2d or 3d, not {backbone!r}")
    return from_module(lambda rngs: LatentReward(channels, text_width, backbone == "3d", rngs))


class LatentReward(nnx.Module):
    """See the module's docstring; `build` makes the pure network."""

    def __init__(self, channels: int, text_width: int | None, volumetric: bool, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, rngs=rngs)
        axes = 3 if volumetric else 2

        def convolution(inputs, kernel, stride):
            # The stride along time is 1: videos have few latent frames.
            window, strides = ((3,), (1,)) if volumetric else ((), ())
            return nnx.Conv(
                inputs,
                WIDTH,
                (*window, kernel, kernel),
                strides=(*strides, stride, stride),
                padding=((1, 1),) * axes,
                rngs=rngs,
            )

        self.reduce, self.refine = convolution(channels, 4, 4), convolution(WIDTH, 3, 2)
        # The total of Tab. 12 includes 512 parameters for scale and bias of the norms, the total of Tab. 13 does not.
        affine = text_width is None
        norm = partial(nnx.GroupNorm, WIDTH, GROUPS, epsilon=1e-5, use_scale=affine, use_bias=affine, rngs=rngs)
        self.reduce_norm, self.refine_norm = norm(), norm()
        self.mix = linear(WIDTH, WIDTH)  # the 1 x 1 convolution after pooling
        if text_width is not None:
            self.text_project = linear(text_width, WIDTH, use_bias=False)
            self.text_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
            self.query, self.key, self.value = (linear(WIDTH, WIDTH) for _ in range(3))
        self.head = linear(WIDTH, 1)
        self.volumetric, self.reads_text = volumetric, text_width is not None

    def __call__(self, latents: Latent, condition: Condition) -> PerExample:
        """The estimated reward of latents with these captions, normalised."""
        batch = latents.shape[0]
        x = latents if self.volumetric else rearrange(latents, "b f h w c -> (b f) h w c")
        x = jax.nn.silu(self.reduce_norm(self.reduce(x)))
        x = jax.nn.silu(self.refine_norm(self.refine(x)))
        x = self.mix(x.mean(tuple(range(1, x.ndim - 1))))
        x = rearrange(x, "(b n) d -> b n d", b=batch)  # one feature for each frame, or one for the video
        if self.reads_text:
            x = x + self._attend(x, condition.embedding, condition.mask)
        return self.head(x).mean((1, 2))

    def _attend(self, x: Float[Array, "b n k"], text: Text, mask: Bool[Array, "b l"]) -> Float[Array, "b n k"]:
        """Attention of image features to the text tokens.

        Corrects Tab. 13, which first pools the text to one token: a softmax over one key is 1, so no gradient would
        reach the latents. Here the tokens are not pooled and the caller adds the image feature; neither change has
        parameters.
        """
        tokens = jax.nn.silu(self.text_norm(self.text_project(text)))
        q, k, v = (y[:, :, None, :] for y in (self.query(x), self.key(tokens), self.value(tokens)))
        return attention(q, k, v, mask=mask)[:, :, 0, :]
