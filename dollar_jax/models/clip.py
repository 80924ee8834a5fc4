"""CLIP: two transformers that map images and texts to embeddings in one space.

    x = [class token | patches W_patch] + positions, normed;     text: x = embedding of the tokens + positions
    every block:  x += attention(norm(x));  x += act(norm(x) W_expand) W_contract
    embedding = norm(x at the class token) W_project;            text: norm(x at the end of the text) W_project

All norms are LayerNorm. A text token attends only to itself and to earlier tokens, so tokens after the end of the text
do not change the embedding, and padding needs no mask. Blocks are stacked and run in one scan.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dollar_jax.errors import UserError
from dollar_jax.models.attention import attention
from dollar_jax.models.network import Network, from_module, make_config, stacked
from dollar_jax.models.stack import Norm, Sequence
from dollar_jax.types import Tokens

Images = Float[Array, "b h w 3"]  # normalised by CLIP's mean and standard deviation
Embedding = Float[Array, "b e"]

ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@dataclasses.dataclass(frozen=True)
class Tower:
    """Common fields of CLIPVisionConfig and CLIPTextConfig in transformers; defaults are those of the text tower."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"clip supports hidden_act = {' or '.join(ACTIVATIONS)}, not {self.hidden_act!r}")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden_size = {self.hidden_size} does not divide by {self.num_attention_heads} heads")


@dataclasses.dataclass(frozen=True)
class Vision(Tower):
    """Sizes of the vision tower."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32

    def __post_init__(self):
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise UserError(f"image_size = {self.image_size} does not divide into patches of {self.patch_size}")


@dataclasses.dataclass(frozen=True)
class Text(Tower):
    """Sizes of the text tower; the last token of the vocabulary is the end-of-text token."""

    vocab_size: int = 49408
    max_position_embeddings: int = 77


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes with the names and defaults of CLIPConfig in transformers (ViT-B/32)."""

    vision_config: Vision = Vision()
    text_config: Text = Text()
    projection_dim: int = 512


def read(config: Mapping[str, Any]) -> Config:
    """The `Config` from a nested dict.

    Raises:
      UserError: a field is unknown or its value is not supported.
    """
    towers = {"vision_config": Vision, "text_config": Text}
    parts = {name: make_config(kind, config.get(name, {}), f"clip's {name}") for name, kind in towers.items()}
    return make_config(Config, {**config, **parts}, "clip")


def build(dtype: DTypeLike = jnp.float32, **config) -> Network:
    """The network with two methods:

    `apply(params, images [b h w 3], method="encode_image") -> [b e]`
    `apply(params, tokens [b l], method="encode_text") -> [b e]`; each text has an end-of-text token

    Embeddings are float32 and not normalised. CLIP's logits are the cosine similarity times
    `exp(params["logit_scale"])`.

    Args:
      dtype: dtype of the computation; parameters are float32.
      **config: fields of `Config`; the fields of each tower are in a dict.
    Raises:
      UserError: a field is unknown or its value is not supported; when traced: images have another size, or texts have
        too many tokens.
    """
    sizes = read(config)
    return from_module(lambda rngs: CLIP(sizes, dtype, rngs))


class Block(nnx.Module):
    """A transformer layer."""

    def __init__(self, config: Tower, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.hidden_size
        linear = partial(nnx.Linear, dtype=dtype, rngs=rngs)
        norm = partial(Norm, width, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.query, self.key, self.value, self.project = (linear(width, width) for _ in range(4))
        self.expand = linear(width, config.intermediate_size)
        self.contract = linear(config.intermediate_size, width)
        self.heads, self.activation = config.num_attention_heads, config.hidden_act

    def __call__(self, x: Sequence, bias: Float[Array, "1 k n n"] | None) -> Sequence:
        y = self.attention_norm(x)
        q, k, v = (rearrange(f(y), "b n (h d) -> b n h d", h=self.heads) for f in (self.query, self.key, self.value))
        x = x + self.project(rearrange(attention(q, k, v, bias), "b n h d -> b n (h d)"))
        return x + self.contract(ACTIVATIONS[self.activation](self.expand(self.mlp_norm(x))))


def run(blocks: Block, x: Sequence, bias: Float[Array, "1 k n n"] | None = None) -> Sequence:
    """Applies stacked blocks one after the other."""
    graph, blocks = nnx.split(blocks)
    x, _ = jax.lax.scan(lambda x, block: (nnx.merge(graph, block)(x, bias), None), x, blocks)
    return x


class VisionTower(nnx.Module):
    """Normalised images -> embeddings."""

    def __init__(self, config: Vision, features: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        width, normal = config.hidden_size, nnx.initializers.normal(0.02)
        linear = partial(nnx.Linear, use_bias=False, dtype=dtype, rngs=rngs)
        norm = partial(Norm, width, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.patch_embed = linear(3 * config.patch_size**2, width)
        self.class_token = nnx.Param(normal(rngs.params(), (width,)))
        self.positions = nnx.Param(normal(rngs.params(), ((config.image_size // config.patch_size) ** 2 + 1, width)))
        self.embed_norm, self.norm = norm(), norm()
        self.blocks = stacked(lambda rngs: Block(config, dtype, rngs), config.num_hidden_layers, rngs)
        self.project = linear(width, features)

    def __call__(self, images: Images) -> Embedding:
        size, patch = self.config.image_size, self.config.patch_size
        if images.shape[1:3] != (size, size):
            raise UserError(f"clip reads images of {size} x {size}, not {images.shape[1:3]}: resize them")
        x = self.patch_embed(rearrange(images, "b (h p) (w q) c -> b (h w) (c p q)", p=patch, q=patch))
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.positions[...].astype(x.dtype)[None]
        x = run(self.blocks, self.embed_norm(x))
        return self.project(self.norm(x[:, 0])).astype(jnp.float32)


class TextTower(nnx.Module):
    """Token ids -> embeddings of the texts."""

    def __init__(self, config: Text, features: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        width, normal = config.hidden_size, nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(config.vocab_size, width, dtype=dtype, embedding_init=normal, rngs=rngs)
        self.positions = nnx.Param(normal(rngs.params(), (config.max_position_embeddings, width)))
        self.blocks = stacked(lambda rngs: Block(config, dtype, rngs), config.num_hidden_layers, rngs)
        self.norm = Norm(width, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.project = nnx.Linear(width, features, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens) -> Embedding:
        length, longest = tokens.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise UserError(f"clip reads at most {longest} tokens, not {length}: cut the text")
        x = self.embed(tokens)
        x = x + self.positions[:length].astype(x.dtype)[None]
        x = run(self.blocks, x, causal_bias(length, self.config.num_attention_heads))
        end = tokens.argmax(1)  # the first end-of-text token, which has the largest id
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return self.project(self.norm(x)).astype(jnp.float32)


def causal_bias(length: int, heads: int) -> Float[Array, "1 h l l"]:
    """Bias that is -inf where the key (column) comes after the query (row), else 0."""
    return jnp.broadcast_to(
        np.triu(np.full((1, 1, length, length), -np.inf, np.float32), 1), (1, heads, length, length)
    )


class CLIP(nnx.Module):
    """See the module's docstring; `build` makes the pure network."""

    def __init__(self, config: Config, dtype: DTypeLike, rngs: nnx.Rngs):
        self.vision = VisionTower(config.vision_config, config.projection_dim, dtype, rngs)
        self.text = TextTower(config.text_config, config.projection_dim, dtype, rngs)
        self.logit_scale = nnx.Param(jnp.log(1 / 0.07))

    def encode_image(self, images: Images) -> Embedding:
        """The embedding of every image."""
        return self.vision(images)

    def encode_text(self, tokens: Tokens) -> Embedding:
        """The embedding of every text."""
        return self.text(tokens)
