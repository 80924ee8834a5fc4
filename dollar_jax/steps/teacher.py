"""Pretraining of a teacher: Eq. 4 with caption dropout."""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dollar_jax.diffusion import PredictionType, Schedule
from dollar_jax.models.network import Network
from dollar_jax.objectives.denoising import choose, denoising_loss
from dollar_jax.sampling import timed
from dollar_jax.steps.common import TrainState, make_optimizer, mean_gradient, moving_average, update
from dollar_jax.types import Key, Params


def make_step(network: Network, prediction_type: PredictionType, schedule: Schedule, config: ConfigDict):
    """Makes the step (state, frozen, batch, key) -> (state, metrics) of a teacher.

    frozen: {'empty': condition of the empty caption, b = 1}. batch: {'latents': [b f h w c], 'condition'}.
    """
    optimizer = make_optimizer(config.optimizer, config.iterations)
    apply = timed(network.apply, schedule)
    count = len(schedule.times)

    def step(state: TrainState, frozen: Params, batch: dict, key: Key) -> tuple[TrainState, dict]:
        size = batch["latents"].shape[0]
        key = jax.random.fold_in(key, state.step)
        time_key, drop_key, noise_key = jax.random.split(key, 3)
        # Stratified draws: each example has its own slice of the times, which lowers the variance of the loss.
        slices = jnp.arange(size) + jax.random.uniform(time_key, (size,))
        dropped = jax.random.bernoulli(drop_key, config.caption_dropout, (size,))
        examples = {
            "latents": batch["latents"],
            "times": schedule.training_time(jnp.minimum((slices / size * count).astype(jnp.int32), count - 1)),
            "condition": choose(dropped, frozen["empty"], batch["condition"]),
            "keys": jax.random.split(noise_key, size),
        }

        def loss(params, part):
            args = (part[name] for name in ("latents", "times", "condition", "keys"))
            return denoising_loss(partial(apply, params), prediction_type, schedule, *args), {}

        gradient, metrics = mean_gradient(loss, state.params, examples, config.accumulate)
        params, optimizer_state, norms = update(
            optimizer, gradient, state.optimizer, state.params, "teacher", metrics["loss"]
        )
        ema = moving_average(state.ema, params, config.ema, state.step)
        return TrainState(state.step + 1, params, ema, optimizer_state), metrics | norms

    return step
