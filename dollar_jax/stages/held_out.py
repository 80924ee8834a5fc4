"""Measures a student during training on fixed prompts and noise."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax.evaluate import collapse
from dollar_jax.evaluate.measure import Clips
from dollar_jax.guard import PREFIX, REWARD
from dollar_jax.pipeline import draw_noise, padded_rows
from dollar_jax.progress import counted
from dollar_jax.rewards.judge import Judge
from dollar_jax.sharding import BATCH, constrain, even_batch, shard
from dollar_jax.stages.common import (
    FITTED,
    HELD_OUT,
    View,
    encode_clips,
    has_clips,
    in_blocks,
    real_clips,
    report_metrics,
)
from dollar_jax.steps.distillation import Distillation, DollarState
from dollar_jax.steps.reward import correlation


def make_measure(
    setup: Distillation,
    config: ConfigDict,
    view: View,
    judge: Judge | None,
    captions: Sequence[str],
    mesh: Mesh,
) -> tuple[Callable[[DollarState], dict[str, float]], list[str]]:
    """Makes the function (state) -> {name: value} that measures videos of the student's moving average.

    Names with `held_out/` in front:
    reward               true reward, mean over videos; with `judge`
    reward_chain         true reward at the end of the chain that a policy gradient trains; with a policy gradient
    reward_estimate      estimate of the latent reward model in the reward's units, mean over videos; with such a model
    reward_correlation   correlation of estimate and true reward over videos; with such a model
    and the columns of `config.report.metrics`, which the reward does not see. The values of `collapse.measure` are
    added under their own names.

    Args:
      view: the view of the student, opened with `captions`.
      judge: the true reward, or None.
    Returns:
      the function, and the names to print on the console.
    """
    pipeline, metrics, real, data_sharpness = view.pipeline, report_metrics(config), None, None
    size = config.report.batch_size
    if has_clips(config):
        real = Clips(*encode_clips(pipeline, real_clips(config, FITTED), size))
        data_sharpness = collapse.sharpness(real.pixels)
    measure = metrics.fit(real)
    noise, keys = draw_noise(pipeline.card, HELD_OUT, len(captions), 1)

    @jax.jit
    def estimate(state, latents, condition):
        return state.reward_statistics.restore(setup.reward_network.apply(state.reward_model, latents, condition))

    @jax.jit
    def chain(params, condition, keys):
        condition, keys = jax.tree.map(lambda x: constrain(x, BATCH), (condition, keys))
        return constrain(setup.trajectory(params, {"condition": condition}, keys)[1])

    def chain_ends(params):
        """Yields the videos at the ends of the policy gradient's chains, in batches."""
        count = even_batch(size)
        for start in range(0, len(captions), count):
            rows = padded_rows((view.condition, keys), start, count)
            yield pipeline.decode(np.asarray(chain(params, *rows)))

    def run(state: DollarState) -> dict[str, float]:
        params = jax.device_put(state.ema, shard(state.ema, mesh))  # `offload` keeps it in the host's memory
        made = pipeline.videos(view.condition, noise, keys, negative=view.negative, params=params, batch_size=size)
        rows = (row for batch in made for row in zip(*batch, strict=True))
        rows = counted(rows, "held out", "video", len(captions))
        latents, frames = (np.stack(part) for part in zip(*rows, strict=True))
        values = measure(Clips(frames, latents, captions))
        if judge:
            rewards = in_blocks(judge, size, frames, captions)
            values["reward"] = rewards.mean()
            if "trajectory" in setup.needs:
                ends = np.concatenate(list(chain_ends(params)))[: len(captions)]
                values["reward_chain"] = in_blocks(judge, size, ends, captions).mean()
            if "reward_model" in setup.needs and state.reward_statistics.count:
                estimates = estimate(state, latents, view.condition)
                values |= {
                    "reward_estimate": estimates.mean(),
                    "reward_correlation": correlation(estimates, jnp.asarray(rewards)),
                }
        values = {PREFIX + name: float(value) for name, value in values.items()}
        return values | collapse.measure(frames, captions, data_sharpness)

    return run, [REWARD, *(PREFIX + column.key for column in metrics.columns if column.shown)]
