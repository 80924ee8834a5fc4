"""The diffusion transformer of Wan 2.1 and 2.2: full 3D self-attention of video tokens, cross-attention to text.

    x = patches W_patch
    every block:  x += gate * self-attention(modulated(x));  x += cross-attention(norm(x), text);
                  x += gate * mlp(modulated(x))
    prediction = unpatch(modulated(x) W)

with modulated(x) = norm(x) (1 + scale) + shift. Shift, scale and gate are a projection of the time, which all blocks
share, plus a table of each block's own. Modulation, norms and sums over the blocks are float32 within a block; between
blocks and layers, arrays have the dtype of the computation. Blocks are a `stack`.
"""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Sequence as Several
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dollar_jax.errors import UserError
from dollar_jax.models import positions, stack
from dollar_jax.models.attention import attention
from dollar_jax.models.linear import Linear
from dollar_jax.models.network import Network, from_module, make_config, stacked
from dollar_jax.models.positions import Turn, time_features, turn
from dollar_jax.models.stack import Sequence, near_zero
from dollar_jax.types import Condition, Latent, Text, Times

Vector = Float[Array, "b 1 d"]  # shift, scale or gate of the tokens of an example

Norm = partial(stack.Norm, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of diffusers' WanTransformer3DModel config, with its names; defaults of Wan2.1-T2V-1.3B.

    `text_length`, which that config lacks, is the number of text tokens that a video attends to.
    """

    patch_size: Several[int] = (1, 2, 2)
    num_attention_heads: int = 12
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 8960
    num_layers: int = 30
    cross_attn_norm: bool = True
    qk_norm: str | None = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None
    text_length: int = 512
    gate_value: float | None = None
    deltatime_type: str = "r"

    def __post_init__(self):
        fixed = {
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "image_dim": None,
            "added_kv_proj_dim": None,
            "pos_embed_seq_len": None,
            "deltatime_type": "r",
        }
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise UserError(f"wan_dit supports {name} = {value} only, not {getattr(self, name)}")
        if len(self.patch_size) != 3:
            raise UserError(f"patch_size has frames, rows and columns, not {self.patch_size}")
        if self.attention_head_dim % 2 or self.attention_head_dim < 6:
            raise UserError(f"positions need an even attention_head_dim of 6 or more, not {self.attention_head_dim}")
        object.__setattr__(self, "patch_size", tuple(self.patch_size))  # JSON has lists

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


def build(
    dtype: DTypeLike = jnp.float32, remat: str = "nothing_saveable", attention: str | None = None, **config
) -> Network:
    """Builds `apply(params, latents [b f h w c], times [b], condition) -> prediction [b f h w c]`, a float32 result.

    Latents may have any size; positions are computed from it when the network is traced. Times of the public weights
    run from 0 to 1000. Text has at most `text_length` tokens, and zeros fill the rest: as in training, a video attends
    to all of them, and `condition.mask` is not used. Under a mesh the tokens are split over the context axis, with
    padding at the end if their number is not divisible, and each block gathers its own parameters.

    Args:
      dtype: dtype of the computation; parameters are float32.
      remat: rematerialisation policy, see `stack.REMAT`.
      attention: attention kernel, see `dollar_jax.models.attention`; None: the kernel for jax's backend.
      **config: fields of `Config`.
    Raises:
      UserError: unknown or unsupported config; when traced, latents whose size the patches do not divide or whose grid
        exceeds `rope_max_seq_len`, or a longer text.
    """
    sizes = make_config(Config, config, "wan_dit")
    stack.require_remat(remat)
    return from_module(lambda rngs: WanDiT(sizes, dtype, remat, attention, rngs))


def modulated(x: Float[Array, "b n d"], shift: Vector, scale: Vector) -> Float[Array, "b n d"]:
    """Shifted and scaled tokens."""
    return x * (1 + scale) + shift


def added(x: Sequence, y: Sequence, gate: Vector | float = 1.0) -> Sequence:
    """x + gate y, summed in float32."""
    return (x.astype(jnp.float32) + gate * y.astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Attention with RMS norm on queries and keys, over all heads together."""

    def __init__(self, config: Config, dtype: DTypeLike, kernel: str | None, rngs: nnx.Rngs):
        linear = partial(Linear, config.width, config.width, dtype=dtype, rngs=rngs)
        norm = partial(nnx.RMSNorm, config.width, epsilon=config.eps, dtype=jnp.float32, rngs=rngs)
        self.query, self.key, self.value, self.project = (linear() for _ in range(4))
        self.query_norm, self.key_norm = norm(), norm()
        self.heads, self.dtype, self.kernel = config.num_attention_heads, dtype, kernel

    def __call__(
        self, x: Sequence, y: Float[Array, "b m d"], length: int | None, rotation: tuple[Turn, Turn] | None
    ) -> Sequence:
        """Tokens x attend to tokens y.

        Args:
          length: number of tokens y that are not padding; None: all.
          rotation: cosines and sines of the positions of both; None: they have none.
        """
        q, k = self.query_norm(self.query(x)), self.key_norm(self.key(y))
        q, k = (rearrange(z, "b n (h d) -> b n h d", h=self.heads) for z in (q, k))
        v = self.value.to_heads(y, self.heads)
        if rotation is not None:
            q, k = turn(q, *rotation), turn(k, *rotation)
        mixed = attention(q.astype(self.dtype), k.astype(self.dtype), v, length=length, kernel=self.kernel)
        return self.project.from_heads(mixed)


class Block(nnx.Module):
    """A transformer layer: self-attention, cross-attention and MLP."""

    def __init__(self, config: Config, dtype: DTypeLike, kernel: str | None, rngs: nnx.Rngs):
        width = config.width
        linear = partial(Linear, dtype=dtype, rngs=rngs)
        self.modulation = nnx.Param(table(6, width, rngs))
        self.norm = Norm(width, epsilon=config.eps, use_bias=False, use_scale=False, rngs=rngs)
        self.self_attention = Attention(config, dtype, kernel, rngs)
        self.cross_norm = Norm(width, epsilon=config.eps, rngs=rngs)
        self.cross_attention = Attention(config, dtype, kernel, rngs)
        self.expand = linear(width, config.ffn_dim)
        self.contract = linear(config.ffn_dim, width)
        self.dtype = dtype

    def __call__(
        self, x: Sequence, time: Float[Array, "b 6 d"], text: Text, length: int | None, rotation: tuple[Turn, Turn]
    ) -> Sequence:
        """Video tokens x after the layer; `length` of them are not padding, None: all."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(self.modulation[...][None] + time, 6, axis=1)
        y = modulated(self.norm(x), shift, scale).astype(self.dtype)
        x = added(x, self.self_attention(y, y, length, rotation), gate)
        x = added(x, self.cross_attention(self.cross_norm(x).astype(self.dtype), text, None, None))
        y = modulated(self.norm(x), mlp_shift, mlp_scale).astype(self.dtype)
        return added(x, self.contract(jax.nn.gelu(self.expand(y), approximate=True)), mlp_gate)


def table(rows: int, width: int, rngs: nnx.Rngs) -> Float[Array, "rows width"]:
    """Initial shifts, scales and gates."""
    return jax.random.normal(rngs.params(), (rows, width)) / width**0.5


class WanDiT(nnx.Module):
    """See the module's docstring; `build` makes the pure network."""

    def __init__(self, config: Config, dtype: DTypeLike, remat: str, kernel: str | None, rngs: nnx.Rngs):
        self.config = config
        linear, exact = (partial(Linear, dtype=kind, rngs=rngs) for kind in (dtype, jnp.float32))
        width, patch = config.width, int(np.prod(config.patch_size))
        self.patch_embed = linear(config.in_channels * patch, width)
        self.text_expand = linear(config.text_dim, width)
        self.text_project = linear(width, width)
        self.time_expand = exact(config.freq_dim, width, kernel_init=near_zero)
        self.time_project = exact(width, width, kernel_init=near_zero)
        if config.gate_value is not None:
            self.delta_expand = exact(config.freq_dim, width, kernel_init=near_zero)
            self.delta_project = exact(width, width, kernel_init=near_zero)
        self.time_modulation = linear(width, 6 * width)
        self.blocks = stacked(lambda rngs: Block(config, dtype, kernel, rngs), config.num_layers, rngs)
        self.norm = Norm(width, epsilon=config.eps, use_bias=False, use_scale=False, rngs=rngs)
        self.modulation = nnx.Param(table(2, width, rngs))
        self.project = linear(width, config.out_channels * patch, kernel_init=near_zero)
        self.dtype, self.remat = dtype, remat

    def __call__(
        self, latents: Latent, times: Times, condition: Condition, targets: Times | None = None
    ) -> Float[Array, "b f h w k"]:
        """The prediction at `latents` x_t and `times`, for the captions' condition; `targets` are a flow map's."""
        r, p, q = self.config.patch_size
        f, h, w = positions.tokens(latents.shape[1:4], self.config.patch_size)
        x, call, video, time = self._prepared(latents, times, condition, targets)
        x = stack.run(self.blocks, call, x, self.dtype, self.remat)
        shift, scale = jnp.split(self.modulation[...][None] + time[:, None, :], 2, axis=1)
        x = self.project(modulated(self.norm(x[:, video]), shift, scale))
        prediction = rearrange(x, "b (f h w) (r p q k) -> b (f r) (h p) (w q) k", f=f, h=h, w=w, r=r, p=p, q=q)
        return prediction.astype(jnp.float32)

    features = stack.video_features

    def _prepared(
        self, latents: Latent, times: Times, condition: Condition, targets: Times | None = None
    ) -> tuple[Sequence, Callable, slice, Float[Array, "b d"]]:
        """Tokens before the blocks, the call of a block, which of the tokens are not padding, and the embedded time."""
        config = self.config
        r, p, q = config.patch_size
        grid = positions.tokens(latents.shape[1:4], config.patch_size)

        waves = partial(time_features, width=config.freq_dim, flip_sin_to_cos=True, freq_shift=0)
        time = self.time_project(jax.nn.silu(self.time_expand(waves(times))))
        if config.gate_value is not None:
            delta = self.delta_project(jax.nn.silu(self.delta_expand(waves(targets))))
            time = (1 - config.gate_value) * time + config.gate_value * delta
        modulation = rearrange(self.time_modulation(jax.nn.silu(time)), "b (k d) -> b k d", k=6).astype(jnp.float32)
        text = self.text_expand(self._filled(condition.embedding))
        text = self.text_project(jax.nn.gelu(text, approximate=True))
        patches = rearrange(latents, "b (f r) (h p) (w q) c -> b (f h w) (c r p q)", r=r, p=p, q=q)
        x, padding = stack.pad(self.patch_embed(patches))
        rotation = self._rotation(grid, padding)
        count = math.prod(grid)
        length = count if padding else None

        def call(block: Block, x: Sequence) -> Sequence:
            return block(x, modulation, text, length, rotation)

        return x, call, slice(count), time

    def _filled(self, text: Text) -> Float[Array, "b m d"]:
        """The text with zeros up to the length that a video attends to."""
        missing = self.config.text_length - text.shape[1]
        if missing < 0:
            raise UserError(
                f"a text has {text.shape[1]} tokens, and this transformer attends to {self.config.text_length}:"
                " encode fewer, or give its config another text_length"
            )
        return jnp.pad(text, ((0, 0), (0, missing), (0, 0)))

    def _rotation(self, grid: positions.Grid, padding: int) -> tuple[Turn, Turn]:
        """Cosines and sines of rotary embeddings: a third of the features for each axis; padding has angle 0."""
        config = self.config
        if max(grid) > config.rope_max_seq_len:
            raise UserError(
                f"a grid of {grid} tokens exceeds rope_max_seq_len = {config.rope_max_seq_len}: sample smaller"
            )
        spatial = config.attention_head_dim // 6 * 2
        widths = config.attention_head_dim - 2 * spatial, spatial, spatial
        f, h, w = grid
        angles = positions.angles((np.arange(f), np.arange(h), np.arange(w)), widths)
        return positions.turns(np.pad(angles, ((0, padding), (0, 0))))
