"""A stack of transformer blocks: each parameter has a leading axis of blocks, and one scan runs them."""

import operator
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dollar_jax.errors import UserError
from dollar_jax.models.attention import SAVED
from dollar_jax.models.linear import MATRICES
from dollar_jax.sharding import BATCH, CONTEXT, constrain, context_size
from dollar_jax.types import Condition, Latent, Times

Sequence = Float[Array, "b n d"]

BLOCK = "block"  # checkpoint name of a block's input
ALIGNED = 128  # multiple of tokens per device under context parallelism; else a TPU reduces whole gradients, not shards

near_zero = nnx.initializers.normal(0.02)
# The mean of activations can be much larger than their deviation: E[x^2] - E[x]^2 would lose all digits.
Norm = partial(nnx.LayerNorm, use_fast_variance=False)

# Rematerialisation policies: the activations of a block, beside its input, that are kept for the gradient; the others
# are recomputed. Names are those of `jax.checkpoint_policies`, but for two: `attention_saveable` keeps the results of
# attention, `offload_blocks` also moves the inputs to the host's memory. On a CPU `everything_saveable` is the slowest:
# the scan writes its activations to stacked arrays.
REMAT = {
    "everything_saveable": jax.checkpoint_policies.everything_saveable,
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "attention_saveable": jax.checkpoint_policies.save_only_these_names(SAVED),
    "offload_dot_with_no_batch_dims": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "offload_blocks": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def require_remat(remat: str) -> None:
    """Raises UserError if there is no such rematerialisation policy."""
    if remat not in REMAT:
        raise UserError(f"remat is one of {', '.join(REMAT)}, not {remat!r}")


def pad(x: Sequence) -> tuple[Sequence, int]:
    """The tokens with zeros at the end, so that the context axis of the mesh splits them evenly; number of zeros."""
    padding = -x.shape[1] % (ALIGNED * context_size()) if context_size() > 1 else 0
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0))), padding


def run(
    blocks: nnx.Module, call: Callable[[nnx.Module, Sequence], Sequence], x: Sequence, dtype: DTypeLike, remat: str
) -> Sequence:
    """The tokens after `x = call(block, x)` for every block.

    Args:
      blocks: what `make` returned.
      dtype: dtype of the matrices in the computation.
      remat: the rematerialisation policy.
    """
    gathered = nnx.Any(*map(nnx.PathContains, ("kernel", *MATRICES)))
    graph, matrices, others = nnx.split(blocks, gathered, ...)

    def step(x, block):
        # FSDP: the matrices of one block are gathered at a time, in the dtype of the computation, rather than those of
        # all blocks before the loop in float32.
        matrices, others = block
        matrices = jax.tree.map(lambda w: constrain(w.astype(dtype)), matrices)
        others = jax.tree.map(constrain, others)
        x = call(nnx.merge(graph, matrices, others), checkpoint_name(x, BLOCK))
        return constrain(x, BATCH, CONTEXT), None

    step = jax.checkpoint(step, prevent_cse=False, policy=REMAT[remat])
    x, _ = jax.lax.scan(step, constrain(x, BATCH, CONTEXT), (matrices, others))
    return x


def video_features(
    self, latents: Latent, times: Times, condition: Condition, depths: Iterable[float]
) -> list[Float[Array, "b m d"]]:
    """The video's tokens after some of the blocks, see `features`: the method `features` of the transformers."""
    x, call, video, _ = self._prepared(latents, times, condition)
    return [x[:, video] for x in features(self.blocks, call, x, self.dtype, self.remat, depths)]


def features(
    blocks: nnx.Module,
    call: Callable[[nnx.Module, Sequence], Sequence],
    x: Sequence,
    dtype: DTypeLike,
    remat: str,
    depths: Iterable[float],
) -> list[Sequence]:
    """The tokens after some of the blocks of `run`; the blocks after the last of them are not run.

    Args:
      depths: shares of the blocks in 0..1, ascending: .5 is after half of them, and at least after the first.
    """
    graph, stacked = nnx.split(blocks)
    total, begun, found = jax.tree.leaves(stacked)[0].shape[0], 0, []
    for depth in depths:
        end = max(round(depth * total), 1)
        part = jax.tree.map(operator.itemgetter(slice(begun, end)), stacked)
        x, begun = run(nnx.merge(graph, part), call, x, dtype, remat), end
        found.append(x)
    return found
