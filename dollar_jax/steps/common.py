"""Parts of every step function: states, optimisers, accumulated gradients, moving averages."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct
from jax import lax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from dollar_jax.models.network import Network
from dollar_jax.sampling import Keys
from dollar_jax.types import Key, Leaf, Params


@struct.dataclass
class TrainState:
    """State of the training of one network (VAE, teacher)."""

    step: Leaf
    params: Params
    ema: Params
    optimizer: optax.OptState


def init_state(network: Network, config: ConfigDict, key: Key) -> TrainState:
    """The initial state, before the first step."""
    params = network.init(key)
    optimizer = make_optimizer(config.optimizer, config.iterations)
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def make_optimizer(config: ConfigDict, iterations: int) -> optax.GradientTransformation:
    """AdamW whose learning rate has a linear warm-up, a constant part and a cosine decay to zero.

    Args:
      config: see `dollar_jax.fields.OPTIMIZER`. The second moment is always float32: with b2 = .999 its changes are
        below the resolution of bfloat16.
      iterations: number of updates.
    """
    decay_start = int(config.decay_from * iterations)
    pieces = [
        optax.linear_schedule(0.0, config.learning_rate, max(config.warmup, 1)),
        optax.constant_schedule(config.learning_rate),
    ]
    boundaries = [config.warmup]
    if decay_start < iterations:
        pieces.append(optax.cosine_decay_schedule(config.learning_rate, iterations - decay_start))
        boundaries.append(max(decay_start, config.warmup))
    rate = optax.join_schedules(pieces, boundaries)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mu_dtype=config.moment),
    )


def example_keys(key: Key, step: jax.Array, batch_size: int) -> Keys:
    """Keys [batch_size] for this step's examples, from its number: a resumed run repeats and skips no draw."""
    return jax.random.split(jax.random.fold_in(key, step), batch_size)


def mean_gradient(loss: Callable, params: Params, examples, pieces: int) -> tuple[Params, dict]:
    """Gradient of the mean loss of a batch, accumulated over `pieces` parts (gradient accumulation).

    Args:
      loss: (params, examples) -> ([b] loss, metrics as a dict of [b] or scalars).
      examples: pytree of [batch, ...]. Each example has its random draws or its own key, so that the result does not
        depend on the number of pieces.
      pieces: number of parts, a divisor of the batch; more parts need less memory for activations.
    Returns:
      the gradient, and the means of the metrics and the loss.
    """

    def mean_loss(params, part):
        losses, metrics = loss(params, part)
        metrics = {"loss": losses, **metrics}
        return losses.mean(), jax.tree.map(jnp.mean, metrics)

    differentiate = jax.grad(mean_loss, has_aux=True)
    if pieces == 1:
        return differentiate(params, examples)
    parts = _split(examples, pieces)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(differentiate, params, jax.tree.map(lambda x: x[0], parts)))

    def add(total, part):
        return jax.tree.map(jnp.add, total, differentiate(params, part)), None

    total, _ = lax.scan(add, zero, parts)
    return jax.tree.map(lambda x: x / pieces, total)


def in_pieces(function: Callable, examples, pieces: int):
    """`function` of a batch, pytree of [b ...] -> pytree of [b ...], computed in the parts of `mean_gradient`."""
    if pieces == 1:
        return function(examples)
    results = lax.map(function, _split(examples, pieces))
    return jax.tree.map(lambda x: rearrange(x, "pieces b ... -> (b pieces) ..."), results)


def _split(examples, pieces: int):
    # Neighbours in the batch go to different pieces, so that each piece has examples on every device.
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1), examples)


def update(
    optimizer: optax.GradientTransformation,
    gradient: Params,
    state: optax.OptState,
    params: Params,
    name: str,
    loss: Float[Array, ""],
) -> tuple[Params, optax.OptState, dict]:
    """One optimiser step of the network `name`.

    The step is skipped if the loss or the gradient is not finite.

    Returns:
      new parameters, new optimiser state, and metrics: norms of gradient, update and parameters, and `skipped/NAME`, 1
      for a skipped step.
    """
    state = jax.device_put(state, jax.memory.Space.Device)  # `offload` keeps it in the host's memory
    change, new_state = optimizer.update(gradient, state, params)
    norms = {
        f"norm/{name}_{kind}": optax.tree.norm(tree)
        for kind, tree in {"gradient": gradient, "update": change, "parameters": params}.items()
    }
    finite = jnp.isfinite(loss) & jnp.isfinite(norms[f"norm/{name}_gradient"])
    new = optax.apply_updates(params, change), new_state
    params, state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, (params, state))
    return params, state, norms | {f"skipped/{name}": 1.0 - finite}


def moving_average(average: Params, params: Params, decay: float, step: jax.Array) -> Params:
    """Exponential moving average whose decay is at most (1 + step) / (10 + step): it starts like a plain mean."""
    average = jax.device_put(average, jax.memory.Space.Device)  # `offload` keeps it in the host's memory
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, params)
