"""The diffusion transformer of CogVideoX: text and video tokens in one sequence, with full 3D attention.

    x = [text W_text | patches W_patch (+ sin-cos positions)]
    every block:  x += gate * attention(adaptive norm(x));  x += gate * mlp(adaptive norm(x))
    prediction = unpatch(adaptive norm(video tokens of x) W)

The time is an input of the adaptive norms; shift, scale and gate differ between text and video tokens. Blocks are
stacked along a leading axis of every parameter under `blocks`, and one scan runs them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from dollar_jax.errors import UserError
from dollar_jax.models import positions, stack
from dollar_jax.models.attention import attention
from dollar_jax.models.linear import Linear
from dollar_jax.models.network import Network, from_module, make_config, stacked
from dollar_jax.models.positions import Turn, time_features, tokens, turn
from dollar_jax.models.stack import Norm, Sequence, near_zero
from dollar_jax.types import Condition, Latent, Times

TimeEmbedding = Float[Array, "b t"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of diffusers' CogVideoXTransformer3DModel config, with its names and defaults (CogVideoX-2B)."""

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_embed_dim: int = 512
    ofs_embed_dim: int | None = None
    text_embed_dim: int = 4096
    num_layers: int = 30
    dropout: float = 0.0
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    patch_size_t: int | None = None
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    activation_fn: str = "gelu-approximate"
    timestep_activation_fn: str = "silu"
    norm_elementwise_affine: bool = True
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False
    patch_bias: bool = True
    gate_value: float | None = None  # not of diffusers, see `models.flow_map`

    def __post_init__(self):
        fixed = {
            "ofs_embed_dim": None,
            "dropout": 0.0,
            "activation_fn": "gelu-approximate",
            "timestep_activation_fn": "silu",
        }
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise UserError(f"cogvideox_dit supports {name} = {value} only, not {getattr(self, name)}")
        if self.patch_size_t and not self.use_rotary_positional_embeddings:
            raise UserError(
                "patch_size_t needs use_rotary_positional_embeddings: diffusers has no sin-cos positions for it"
            )
        if self.use_learned_positional_embeddings and not self.use_rotary_positional_embeddings:
            raise UserError("use_learned_positional_embeddings needs use_rotary_positional_embeddings, as in diffusers")
        size = self.attention_head_dim if self.use_rotary_positional_embeddings else self.width
        if size % 16:
            raise UserError(f"positions need a width divisible by 16, not {size}: change attention_head_dim")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch(self) -> tuple[int, int, int]:
        """Numbers of latent frames, rows and columns in a token."""
        return self.patch_size_t or 1, self.patch_size, self.patch_size

    @property
    def grid(self) -> positions.Grid:
        """Numbers of tokens along time, height and width in training."""
        frames = (self.sample_frames - 1) // self.temporal_compression_ratio + 1
        r, p, q = self.patch
        return frames // r, self.sample_height // p, self.sample_width // q


def build(
    dtype: DTypeLike = jnp.float32, remat: str = "nothing_saveable", attention: str | None = None, **config
) -> Network:
    """Builds `apply(params, latents [b f h w c], times [b], condition) -> prediction [b f h w c]`, a float32 result.

    Latents and text may have any size; positions are computed from it when the network is traced. Under a mesh the
    tokens are split over the context axis, with padding at the end if their number is not divisible, and each block
    gathers its own parameters.

    Args:
      dtype: dtype of the computation; parameters are float32.
      remat: rematerialisation policy, see `stack.REMAT`.
      attention: attention kernel, see `dollar_jax.models.attention`; None: the kernel for jax's backend.
      **config: fields of `Config`.
    Raises:
      UserError: unknown or unsupported config; when traced, latents whose size the patches do not divide.
    """
    sizes = make_config(Config, config, "cogvideox_dit")
    stack.require_remat(remat)
    return from_module(lambda rngs: CogVideoXDiT(sizes, dtype, remat, attention, rngs))


class AdaptiveNorm(nnx.Module):
    """LayerNorm with shift, scale and gate from the time, different for text and video tokens."""

    def __init__(self, config: Config, dtype: DTypeLike, rngs: nnx.Rngs):
        affine = config.norm_elementwise_affine
        self.modulation = Linear(config.time_embed_dim, 6 * config.width, dtype=dtype, kernel_init=near_zero, rngs=rngs)
        self.norm = Norm(
            config.width, epsilon=config.norm_eps, use_bias=affine, use_scale=affine, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, x: Sequence, time: TimeEmbedding, is_text: Bool[np.ndarray, "1 n 1"]
    ) -> tuple[Sequence, Sequence]:
        """The modulated tokens, and the gate of the layer that follows."""
        # Split first: what `where` makes is as long as the sequence, and each part of it is fused with its use.
        video, text = (jnp.split(x, 3, axis=-1) for x in jnp.split(self.modulation(time)[:, None, :], 2, axis=-1))
        shift, scale, gate = (jnp.where(is_text, *pair) for pair in zip(text, video, strict=True))
        return self.norm(x) * (1 + scale) + shift, gate


class Attention(nnx.Module):
    """Self-attention of all tokens, with LayerNorm on the queries and keys of each head."""

    def __init__(self, config: Config, dtype: DTypeLike, rngs: nnx.Rngs):
        linear = partial(Linear, config.width, config.width, dtype=dtype, rngs=rngs)
        norm = partial(Norm, config.attention_head_dim, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = (linear(use_bias=config.attention_bias) for _ in range(3))
        self.query_norm, self.key_norm = norm(), norm()
        self.project = linear()
        self.heads = config.num_attention_heads

    def __call__(self, x: Sequence, attend: Callable, rotation: tuple[Turn, Turn] | None) -> Sequence:
        q, k, v = (layer.to_heads(x, self.heads) for layer in (self.query, self.key, self.value))
        q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q, k = turn(q, *rotation), turn(k, *rotation)
        return self.project.from_heads(attend(q, k, v))


class Block(nnx.Module):
    """A transformer layer: attention and MLP, each with an adaptive norm and a gate."""

    def __init__(self, config: Config, dtype: DTypeLike, rngs: nnx.Rngs):
        linear = partial(Linear, dtype=dtype, rngs=rngs)
        self.attention_norm = AdaptiveNorm(config, dtype, rngs)
        self.attention = Attention(config, dtype, rngs)
        self.mlp_norm = AdaptiveNorm(config, dtype, rngs)
        self.expand = linear(config.width, 4 * config.width)
        self.contract = linear(4 * config.width, config.width)

    def __call__(
        self,
        x: Sequence,
        time: TimeEmbedding,
        is_text: Bool[np.ndarray, "1 n 1"],
        attend: Callable,
        rotation: tuple[Turn, Turn] | None,
    ) -> Sequence:
        y, gate = self.attention_norm(x, time, is_text)
        x = x + gate * self.attention(y, attend, rotation)
        y, gate = self.mlp_norm(x, time, is_text)
        return x + gate * self.contract(jax.nn.gelu(self.expand(y), approximate=True))


class CogVideoXDiT(nnx.Module):
    """See the module's docstring; `build` makes the pure network."""

    def __init__(self, config: Config, dtype: DTypeLike, remat: str, kernel: str | None, rngs: nnx.Rngs):
        self.config = config
        linear = partial(Linear, dtype=dtype, rngs=rngs)
        width, patch = config.width, int(np.prod(config.patch))
        affine = config.norm_elementwise_affine
        patch_bias = config.patch_bias or config.patch_size_t is not None
        self.patch_embed = linear(config.in_channels * patch, width, use_bias=patch_bias)
        self.text_embed = linear(config.text_embed_dim, width)
        self.time_expand = linear(width, config.time_embed_dim)
        self.time_project = linear(config.time_embed_dim, config.time_embed_dim)
        if config.gate_value is not None:
            self.delta_expand = linear(width, config.time_embed_dim)
            self.delta_project = linear(config.time_embed_dim, config.time_embed_dim)
        self.blocks = stacked(lambda rngs: Block(config, dtype, rngs), config.num_layers, rngs)
        norm = partial(Norm, width, epsilon=config.norm_eps, use_bias=affine, use_scale=affine, dtype=dtype, rngs=rngs)
        self.norm, self.project_norm = norm(), norm()
        self.project_modulation = linear(config.time_embed_dim, 2 * width, kernel_init=near_zero)
        self.project = linear(width, config.out_channels * patch, kernel_init=near_zero)
        if config.use_learned_positional_embeddings:
            self.positions = nnx.Param(jnp.asarray(self._sincos(config.grid, config.max_text_seq_length)))
        self.dtype, self.remat, self.kernel = dtype, remat, kernel

    def __call__(
        self, latents: Latent, times: Times, condition: Condition, targets: Times | None = None
    ) -> Float[Array, "b f h w k"]:
        """The prediction at `latents` x_t and `times`, for the captions' condition; `targets` are a flow map's."""
        config = self.config
        r, p, q = config.patch
        f, h, w = tokens(latents.shape[1:4], config.patch)
        x, call, video, time = self._prepared(latents, times, condition, targets)
        x = stack.run(self.blocks, call, x, self.dtype, self.remat)
        shift, scale = jnp.split(self.project_modulation(time)[:, None, :], 2, axis=-1)
        x = self.project(self.project_norm(self.norm(x[:, video])) * (1 + scale) + shift)
        prediction = rearrange(x, "b (f h w) (k r p q) -> b (f r) (h p) (w q) k", f=f, h=h, w=w, r=r, p=p, q=q)
        return prediction.astype(jnp.float32)

    features = stack.video_features

    def _prepared(
        self, latents: Latent, times: Times, condition: Condition, targets: Times | None = None
    ) -> tuple[Sequence, Callable, slice, TimeEmbedding]:
        """Tokens before the blocks, the call of a block, which of the tokens are the video's, and the embedded time."""
        config, text = self.config, condition.embedding
        r, p, q = config.patch
        grid = tokens(latents.shape[1:4], config.patch)
        length = text.shape[1]
        waves = partial(
            time_features,
            width=config.width,
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        time = self.time_project(jax.nn.silu(self.time_expand(waves(times))))
        if config.gate_value is not None:
            delta = self.delta_project(jax.nn.silu(self.delta_expand(waves(targets))))
            time = (1 - config.gate_value) * time + config.gate_value * delta
        time = jax.nn.silu(time)
        patches = rearrange(latents, "b (f r) (h p) (w q) c -> b (f h w) (c r p q)", r=r, p=p, q=q)
        x = self._place(jnp.concatenate([self.text_embed(text), self.patch_embed(patches)], axis=1), grid, length)
        count = x.shape[1]
        x, padding = stack.pad(x)
        is_text = np.arange(count + padding)[None, :, None] < length
        rotation = self._rotation(grid, length, padding) if config.use_rotary_positional_embeddings else None
        attend = partial(attention, length=count if padding else None, kernel=self.kernel)

        def call(block: Block, x: Sequence) -> Sequence:
            return block(x, time, is_text, attend, rotation)

        return x, call, slice(length, count), time

    def _place(self, x: Sequence, grid: positions.Grid, length: int) -> Sequence:
        """Adds sin-cos or learned positional embeddings; rotary ones are applied in the attention."""
        config = self.config
        if config.use_learned_positional_embeddings:
            if (grid, length) != (config.grid, config.max_text_seq_length):
                raise UserError(
                    f"learned positions exist for {config.max_text_seq_length} text tokens and a grid of {config.grid}"
                    f", not for {length} and {grid}: use the sizes of training"
                )
            return x + self.positions[...].astype(x.dtype)
        if config.use_rotary_positional_embeddings:
            return x
        return x + self._sincos(grid, length).astype(x.dtype)

    def _sincos(self, grid: positions.Grid, length: int) -> Float[np.ndarray, "1 n d"]:
        """Sin-cos embeddings of the whole sequence; those of text are 0."""
        config = self.config
        scales = config.spatial_interpolation_scale, config.temporal_interpolation_scale
        return np.pad(positions.sincos(grid, config.width, *scales), ((length, 0), (0, 0)))[None]

    def _rotation(self, grid: positions.Grid, length: int, padding: int) -> tuple[Turn, Turn]:
        """Cosines and sines of rotary embeddings for the whole sequence; the angle of text and padding is 0."""
        config = self.config
        angles = positions.rotary(grid, config.attention_head_dim, config.grid[1:], fit=config.patch_size_t is None)
        return positions.turns(np.pad(angles, ((length, padding), (0, 0))))
