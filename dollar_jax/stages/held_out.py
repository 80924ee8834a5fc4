"""Measures a student in training on prompts and noise that are always the same."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dollar_jax import collapse
from dollar_jax.guard import PREFIX
from dollar_jax.importing import resolve
from dollar_jax.pipeline import draw_noise, padded_rows
from dollar_jax.rewards.judge import Judge
from dollar_jax.sharding import BATCH, constrain, shard
from dollar_jax.stages.common import HELD_OUT, View, encode_clips, real_clips
from dollar_jax.steps.dollar import Distillation, DollarState
from dollar_jax.steps.reward import correlation


def make_measure(
    setup: Distillation,
    config: ConfigDict,
    view: View,
    judge: Judge | None,
    captions: Sequence[str],
    mesh: Mesh,
) -> Callable[[DollarState], dict[str, float]]:
    """(state) -> what the videos of the student's moving average are worth, by names with `held_out/` in front, and
    what `collapse.measure` finds.

    reward               the true one, mean over videos
    reward_chain         the same at the end of the chain that a policy gradient trains, where one does
    reward_estimate      the latent reward model's, in the reward's units, where there is one, and
    reward_correlation   between the two, over videos
    and all that the module `config.report.measures` measures, which the reward does not see.

    Args:
      view: opened with these captions.
      judge: the true reward, where there is one.
    """
    pipeline, module = view.pipeline, config.report.measures
    reference, measure = (resolve(f"{module}:{name}", "") for name in ("reference", "measure"))
    frames, *rest = encode_clips(pipeline, real_clips(config)[::2])
    frames = frames / np.float32(255)
    known, data_sharpness = reference(frames, *rest), collapse.sharpness(frames)
    size = config.report.batch_size
    noise, keys = draw_noise(pipeline.card, HELD_OUT, len(captions), 1)

    @jax.jit
    def estimate(state, latents, condition):
        return state.reward_statistics.restore(setup.reward_network.apply(state.reward_model, latents, condition))

    @jax.jit
    def chain(params, noise, condition, keys):
        noise, condition, keys = jax.tree.map(lambda x: constrain(x, BATCH), (noise, condition, keys))
        return constrain(setup.trajectory(params, {"latents": noise, "condition": condition}, keys)[1])

    def chain_ends(params):
        """The videos in which the policy gradient's chains end."""
        for start in range(0, len(captions), size):
            rows = padded_rows((noise, view.condition, keys), start, size)
            yield pipeline.decode(np.asarray(chain(params, *rows)))

    def run(state: DollarState) -> dict[str, float]:
        params = jax.device_put(state.ema, shard(state.ema, mesh))  # it may wait in the host's memory
        made = pipeline.videos(view.condition, noise, keys, negative=view.negative, params=params, batch_size=size)
        latents, frames = (np.concatenate(part) for part in zip(*made, strict=True))
        frames = frames / np.float32(255)
        values = measure(frames, latents, captions, known)
        if judge:
            rewards = judge(frames, captions)
            values["reward"] = rewards.mean()
            if "trajectory" in setup.needs:
                ends = np.concatenate(list(chain_ends(params)))[: len(captions)]
                values["reward_chain"] = judge(ends, captions).mean()
            if "reward_model" in setup.needs and state.reward_statistics.count:
                estimates = estimate(state, latents, view.condition)
                values |= {
                    "reward_estimate": estimates.mean(),
                    "reward_correlation": correlation(estimates, jnp.asarray(rewards)),
                }
        values = {PREFIX + name: float(value) for name, value in values.items()}
        return values | collapse.measure(frames, captions, data_sharpness)

    return run
