"""What every step function is made of: states, optimisers, gradients in pieces, moving averages."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from dollar_jax.models.network import Network
from dollar_jax.sampling import Keys
from dollar_jax.types import Key, Leaf, Params


@struct.dataclass
class TrainState:
    """One network in training (VAE, teacher)."""

    step: Leaf
    params: Params
    ema: Params
    optimizer: optax.OptState


def init_state(network: Network, config: ConfigDict, key: Key) -> TrainState:
    """The state before the first step."""
    params = network.init(key)
    optimizer = make_optimizer(config.optimizer, config.iterations)
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def make_optimizer(config: ConfigDict, iterations: int) -> optax.GradientTransformation:
    """AdamW with a warm-up, a constant rate and a cosine to zero.

    Fields: learning_rate; warmup, steps of linear warm-up; decay_from, the fraction of `iterations` where the cosine
    begins (0: at once; 1: the rate stays); b1, b2, weight_decay; clip, the largest global norm of a gradient; moment,
    the dtype in which the mean of gradients is kept. (Their mean square cannot be kept in bfloat16: with b2 = .999 it
    changes by less than a bfloat16 resolves.)
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
    """A key for each example of this step's batch: a resumed run repeats nothing and skips nothing."""
    return jax.random.split(jax.random.fold_in(key, step), batch_size)


def mean_gradient(loss: Callable, params: Params, examples, pieces: int) -> tuple[Params, dict]:
    """Gradient of the batch's mean loss, computed in `pieces` parts one after the other.

    Args:
      loss: (params, examples) -> ([b] loss, metrics as a dict of [b] or scalars).
      examples: pytree of [batch, ...]; everything random in it is already drawn or keyed for each example, so that the
        result does not depend on the number of pieces.
      pieces: divides the batch; the memory of activations falls with it.
    Returns:
      the gradient, and the metrics' means with the loss among them.
    """

    def mean_loss(params, part):
        losses, metrics = loss(params, part)
        metrics = {"loss": losses, **metrics}
        return losses.mean(), jax.tree.map(jnp.mean, metrics)

    differentiate = jax.grad(mean_loss, has_aux=True)
    if pieces == 1:
        return differentiate(params, examples)
    # Every piece takes examples of every device: neighbours in the batch go to different pieces.
    parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1), examples)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(differentiate, params, jax.tree.map(lambda x: x[0], parts)))

    def add(total, part):
        return jax.tree.map(jnp.add, total, differentiate(params, part)), None

    total, _ = lax.scan(add, zero, parts)
    return jax.tree.map(lambda x: x / pieces, total)


def update(
    optimizer: optax.GradientTransformation,
    gradient: Params,
    state: optax.OptState,
    params: Params,
    name: str,
    loss: Float[Array, ""],
) -> tuple[Params, optax.OptState, dict]:
    """One optimiser step of the network `name`: new parameters, new optimiser state, norms for the log.

    Where the loss or the gradient is not finite everything stays as it is, and the log says `skipped/NAME` 1.
    """
    state = jax.device_put(state, jax.memory.Space.Device)  # it may wait in the host's memory
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
    """EMA that starts as a plain mean: the decay is at most (1 + step) / (10 + step)."""
    average = jax.device_put(average, jax.memory.Space.Device)  # it may wait in the host's memory
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, params)
