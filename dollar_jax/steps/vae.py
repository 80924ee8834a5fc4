"""Training of the VAE: reconstruction and KL."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from dollar_jax.models.network import Network
from dollar_jax.objectives.autoencoder import kl, reconstruction, sample_posterior
from dollar_jax.sampling import normal
from dollar_jax.steps.common import TrainState, example_keys, make_optimizer, mean_gradient, moving_average, update
from dollar_jax.types import Key, Params


def make_step(network: Network, config: ConfigDict):
    """Makes the step (state, {}, batch, key) -> (state, metrics) of the VAE; batch: {'video': uint8 [b F H W 3]}."""
    optimizer = make_optimizer(config.optimizer, config.iterations)

    def step(state: TrainState, frozen: Params, batch: dict, key: Key) -> tuple[TrainState, dict]:
        del frozen

        def loss(params, part):
            video = part["video"] / 127.5 - 1.0
            mean, log_variance = network.apply(params, video, method="encode")
            latents = sample_posterior(mean, log_variance, normal(part["keys"], mean.shape[1:]))
            error = reconstruction(video, network.apply(params, latents, method="decode"))
            divergence = kl(mean, log_variance)
            # Videos span -1..1: the peak is 2, its square 4.
            decibels = 10 * jnp.log10(4 / error)
            return error + config.kl * divergence, {"psnr_db": decibels, "loss/kl": divergence}

        examples = {**batch, "keys": example_keys(key, state.step, batch["video"].shape[0])}
        gradient, metrics = mean_gradient(loss, state.params, examples, config.accumulate)
        params, optimizer_state, norms = update(
            optimizer, gradient, state.optimizer, state.params, "vae", metrics["loss"]
        )
        ema = moving_average(state.ema, params, config.ema, state.step)
        return TrainState(state.step + 1, params, ema, optimizer_state), metrics | norms

    return step
