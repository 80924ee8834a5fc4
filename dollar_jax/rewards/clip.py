"""Shared parts of the CLIP rewards: the original image preprocessing, checkpoints, embeddings.

A bicubic resize is linear, so it is a product with two matrices here, which has a gradient; crop and bars are part of
the matrices.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from dollar_jax.checkpoint import Card, load_component, read_card
from dollar_jax.data.text import load_tokenizer, tokenize
from dollar_jax.errors import UserError
from dollar_jax.models import clip
from dollar_jax.models.network import Network
from dollar_jax.types import Params, PerExample

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)

Frames = Float[Array, "n h w 3"]  # 0..1
Images = Float[Array, "n s s 3"]
Weights = Float[np.ndarray, "target source"]
Videos = Float[Array, "b f h w 3"]
Embeddings = Float[Array, "*n e"]


def bicubic(source: int, target: int) -> Weights:
    """Matrix that resizes `source` pixels to `target` pixels: the antialiased cubic kernel with a = -1/2 of Pillow, and
    of PyTorch with antialiasing.
    """
    scale = source / target
    distance = np.abs(np.arange(source) + 0.5 - (np.arange(target)[:, None] + 0.5) * scale) / max(scale, 1)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def cropped(frames: Frames, size: int) -> Images:
    """Resizes the shorter side to `size`, crops the middle of the longer side, normalises: CLIPImageProcessor of
    transformers.

    Pillow's resize works on 8-bit pixels and rounds after each of its two passes. This function rounds likewise, and
    the rounding passes the gradient straight through.
    """
    sides = frames.shape[1:3]
    weights = [bicubic(side, side * size // min(sides)) for side in sides]
    starts = [(len(w) - size) // 2 for w in weights]
    rows, columns = (w[start : start + size] for w, start in zip(weights, starts, strict=True))
    pixels = _product("nhwc,sw->nhsc", _to_8_bits(frames * 255), columns)
    return _normalise(_to_8_bits(_product("nhwc,sh->nswc", _to_8_bits(pixels), rows)) / 255)


def letterboxed(frames: Frames, size: int) -> Images:
    """Resizes the longer side to `size`, pads the shorter side with black bars, normalises: the transform of HPSv2.

    HPSv2 resizes floating-point tensors, so nothing is rounded. The resize is antialiased, as in torchvision from 0.17.
    """
    sides = frames.shape[1:3]
    weights = [bicubic(side, round(side * size / max(sides))) for side in sides]
    bars = [(size - len(w)) // 2 for w in weights]
    rows, columns = (np.pad(w, [(bar, size - len(w) - bar), (0, 0)]) for w, bar in zip(weights, bars, strict=True))
    return _normalise(_product("nhwc,sh->nswc", _product("nhwc,sw->nhsc", frames, columns), rows))


_product = partial(jnp.einsum, precision="highest")  # the default precision of accelerators would change the scores


def _to_8_bits(pixels: Array) -> Array:
    rounded = jnp.floor(jnp.clip(pixels, 0, 255) + 0.5)
    return pixels - jax.lax.stop_gradient(pixels) + jax.lax.stop_gradient(rounded)


def _normalise(images: Images) -> Images:
    mean, deviation = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3) for x in (MEAN, DEVIATION))
    return (images - mean) / deviation


def load(checkpoint: str, role: str, dtype: str) -> tuple[Network, Params, Card]:
    """Loads a converted network with the role 'clip' or 'aesthetic'. Returns (network, weights, card).

    The network computes in `dtype`, and its weights have this dtype.

    Raises:
      UserError: `checkpoint` holds no network with this role.
    """
    card = read_card(checkpoint)
    if role not in card:
        raise UserError(f"{checkpoint} holds no {role}: make it with python -m dollar_jax.convert from_torch SRC DST")
    network, params = load_component(checkpoint, card[role], dtype=dtype)
    # Scalar parameters (logit scales) stay in float32: bfloat16 has too few digits for them.
    return network, jax.tree.map(lambda x: jnp.asarray(x, dtype if x.ndim else jnp.float32), params), card[role]


class Clip:
    """A CLIP network that turns captions and frames into unit embeddings.

    Args:
      checkpoint: folder of the converted CLIP.
      dtype: dtype of the network.
      tokenizer: a Hugging Face tokenizer folder; '' for the folder `tokenizer` in the checkpoint; None for a CLIP that
        reads no captions.
    Raises:
      UserError: the checkpoint holds no CLIP, or the tokenizer is missing.
    """

    def __init__(self, checkpoint: str, dtype: str, tokenizer: str | None):
        if tokenizer is not None:
            self._tokenizer = load_tokenizer(tokenizer or Path(checkpoint) / "tokenizer")
        self._network, self.params, card = load(checkpoint, "clip", dtype)
        self._config = clip.read(card["config"])
        self._encode_text = jax.jit(partial(self._network.apply, method="encode_text"))

    def texts(self, captions: Sequence[str]) -> Embeddings:
        """Embeddings [b e] of the captions, truncated to the longest input of the text tower."""
        tokens, _ = tokenize(self._tokenizer, captions, self._config.text_config.max_position_embeddings)
        return _unit(self._encode_text(self.params, tokens))

    def frames(self, params: Params, frames: Videos, to_images: Callable[[Frames, int], Images]) -> Embeddings:
        """Embeddings [b f e] of all frames of videos with pixels in 0..1; `to_images` is `cropped` or `letterboxed`."""
        images = to_images(rearrange(frames, "b f h w c -> (b f) h w c"), self._config.vision_config.image_size)
        embeddings = _unit(self._network.apply(params, images, method="encode_image"))
        return rearrange(embeddings, "(b f) e -> b f e", b=len(frames))


class Preference:
    """cos(image, text) by a CLIP that was tuned on human preferences; the mean over frames.

    Subclasses define `to_images`, the preprocessing of frames.

    Args:
      checkpoint: folder of the converted weights.
      tokenizer: folder of CLIP's tokenizer; '' for the folder `tokenizer` in the checkpoint.
      dtype: dtype of the network; bfloat16 takes half the memory.
    Raises:
      UserError: the checkpoint holds no CLIP, or the tokenizer is missing.
    """

    to_images: Callable[[Frames, int], Images]

    def __init__(self, checkpoint: str, tokenizer: str = "", dtype: str = "float32"):
        if not checkpoint:
            raise UserError("the converted weights are missing: set reward.options.checkpoint; see docs/rewards.md")
        self._clip = Clip(checkpoint, dtype, tokenizer)
        self.params = self._clip.params

    def prepare(self, captions: Sequence[str]) -> dict[str, Embeddings]:
        """Unit embeddings [b e] of the captions."""
        return {"text": self._clip.texts(captions)}

    def score(self, frames: Videos, prepared: dict[str, Array | np.ndarray], params: Params) -> PerExample:
        """Scores of videos with pixels in 0..1, differentiable everywhere with respect to the pixels."""
        images = self._clip.frames(params, frames, self.to_images)
        return jnp.einsum("bfe,be->bf", images, prepared["text"]).mean(1)


def _unit(x: Embeddings) -> Embeddings:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
