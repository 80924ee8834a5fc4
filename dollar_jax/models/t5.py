"""The encoder of T5 v1.1: token ids to text embeddings.

    x = embedding of the tokens
    every block:  x += attention(RMS norm(x));  x += (gelu(y W_gate) * y W_expand) W_contract,  y = RMS norm(x)
    text = RMS norm(x)

No layer has a bias, and logits are not divided by sqrt(d). Positions are relative: a learned number for each head and
bucket of distances is added to the logits, the same in every block or each block's own (umT5). Blocks are stacked, and
one scan runs them.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dollar_jax.models.attention import attention
from dollar_jax.models.network import Network, from_module, make_config, stacked
from dollar_jax.types import Condition, Text, Tokens

Mask = Bool[Array, "b l"] | None  # False where a token is padding


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of transformers' T5Config, with its names and defaults."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    # Not in T5Config:
    attend_padding: bool = True  # whether tokens attend to padding, as in CogVideoX's public pipeline
    zero_padding: bool = False  # whether embeddings of padding are set to zero
    own_biases: bool = False  # whether each block has its own numbers for distances
    # Standard deviation of the initial numbers for distances, by default transformers' d_model**-.5. With that, an
    # encoder that is never trained says hardly anything of the order of the words.
    distance_std: float | None = None


def build(dtype: DTypeLike = jnp.float32, **config) -> Network:
    """Builds `apply(params, tokens [b l], mask [b l]) -> Condition` with embeddings [b l d_model] in float32.

    Args:
      dtype: dtype of the computation; parameters are float32.
      **config: fields of `Config`.
    Raises:
      UserError: unknown config.
    """
    sizes = make_config(Config, config, "t5")
    return from_module(lambda rngs: T5Encoder(sizes, dtype, rngs))


def distance_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "l l"]:
    """Buckets of the distances from each token (row) to each token (column).

    The first half of the buckets is for columns up to the row, the second half for columns after it. In each half, the
    first half of the buckets holds one distance each; the widths of the others grow by a constant factor up to
    max_distance. Larger distances are in the last bucket.
    """
    half, exact = buckets // 2, buckets // 4
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(offset)
    growth = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    far = np.minimum(exact + (growth * (half - exact)).astype(int), half - 1)
    return np.where(distance < exact, distance, far) + half * (offset > 0)


class Block(nnx.Module):
    """A transformer layer: attention and gated MLP."""

    def __init__(self, config: Config, dtype: DTypeLike, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, use_bias=False, dtype=dtype, rngs=rngs)
        norm = partial(nnx.RMSNorm, config.d_model, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs)
        width = config.num_heads * config.d_kv
        self.attention_norm, self.mlp_norm = norm(), norm()
        # The initial queries have the factor 1/sqrt(d_kv) that the logits lack.
        query_init = nnx.initializers.normal((config.d_model * config.d_kv) ** -0.5)
        self.query = linear(config.d_model, width, kernel_init=query_init)
        self.key = linear(config.d_model, width)
        self.value = linear(config.d_model, width)
        self.project = linear(width, config.d_model)
        self.gate = linear(config.d_model, config.d_ff)
        self.expand = linear(config.d_model, config.d_ff)
        self.contract = linear(config.d_ff, config.d_model)
        self.heads = config.num_heads

    def __call__(self, x: Text, bias: Float[Array, "1 h l l"], mask: Mask) -> Text:
        y = self.attention_norm(x)
        q, k, v = (rearrange(f(y), "b l (h d) -> b l h d", h=self.heads) for f in (self.query, self.key, self.value))
        x = x + self.project(rearrange(attention(q, k, v, bias, mask, scale=1.0), "b l h d -> b l (h d)"))
        y = self.mlp_norm(x)
        return x + self.contract(jax.nn.gelu(self.gate(y), approximate=True) * self.expand(y))


class T5Encoder(nnx.Module):
    """See the module's docstring; `build` makes the pure network."""

    def __init__(self, config: Config, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal
        self.dtype = dtype
        self.embed = nnx.Embed(config.vocab_size, config.d_model, embedding_init=normal(1.0), dtype=dtype, rngs=rngs)

        def distance_bias(rngs: nnx.Rngs) -> nnx.Embed:
            init = normal(config.d_model**-0.5 if config.distance_std is None else config.distance_std)
            return nnx.Embed(config.relative_attention_num_buckets, config.num_heads, embedding_init=init, rngs=rngs)

        layers = config.num_layers
        self.distance_bias = stacked(distance_bias, layers, rngs) if config.own_biases else distance_bias(rngs)
        self.blocks = stacked(lambda rngs: Block(config, dtype, rngs), layers, rngs)
        self.norm = nnx.RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, mask: Bool[Array, "b l"]) -> Condition:
        """Embeddings of the tokens, with `mask`, which is True at tokens and False at padding."""
        config = self.config
        visible = None if config.attend_padding else mask
        buckets = distance_buckets(
            tokens.shape[1], config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        table = self.distance_bias.embedding[...].astype(self.dtype)  # of all blocks, or of each
        tables = jnp.broadcast_to(table, (config.num_layers, *table.shape[-2:]))
        graph, blocks = nnx.split(self.blocks)

        def step(x, layer):
            block, table = layer
            bias = rearrange(table[buckets], "n m h -> 1 h n m")
            return nnx.merge(graph, block)(x, bias, visible), None

        x, _ = jax.lax.scan(step, self.embed(tokens), (blocks, tables))
        text = self.norm(x).astype(jnp.float32)
        return Condition(jnp.where(mask[..., None], text, 0) if config.zero_padding else text, mask)
