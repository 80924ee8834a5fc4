"""How many videos a policy gradient needs at a student of the shapes world: its noise beside what it estimates.

    python -m benchmarks.policy_noise --run=DIR/base/0 --transitions=2

The reward is `BorderBrightness`, which has a gradient: through the same transitions with their noise held fixed, a
thousand videos give the derivative g of the expected reward almost exactly. An estimate from n videos has noise of the
norm s / sqrt(n) beside it, and its cosine with g is |g| / sqrt(|g|^2 + s^2 / n).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs.laboratory import get_config
from dollar_jax.checkpoint import read_card
from dollar_jax.cli import required, run
from dollar_jax.data.shapes import CAPTIONS
from dollar_jax.objectives.policy_gradient import log_probability, path, posterior
from dollar_jax.pipeline import load
from dollar_jax.rewards.shapes_world import BorderBrightness
from dollar_jax.sampling import fold, normal, step_to
from dollar_jax.stages.distill import make_setup

CHUNK, TINY, CHUNKS = 240, 16, 4  # videos at a time, of one small estimate, and how often
_RUN = flags.DEFINE_string("run", None, "A workdir with a teacher and vsd_cd: the laboratory's `base`.")
_TRANSITIONS = flags.DEFINE_integer("transitions", 2, "The last ones, of four.", lower_bound=1, upper_bound=4)


def main() -> None:
    required(_RUN)
    folder = Path(_RUN.value)
    pipeline = load(folder / "vsd_cd")
    network, student = pipeline.networks["transformer"]
    config = get_config("rewards_smooth")
    captions = pipeline.encode_text(CAPTIONS)
    setup = make_setup(config, read_card(folder / "teacher"), network, jax.tree.map(lambda x: x[:1], captions))
    times = path(config.generator.times, setup.schedule)
    first = len(times) - 1 - _TRANSITIONS.value
    prompts = np.arange(CHUNK) % len(CAPTIONS)
    condition = jax.tree.map(lambda x: jnp.asarray(x[prompts]), captions)

    def at(index, count):
        return jnp.full(count, float(times[index]))

    def reward(latents):
        return BorderBrightness().score(pipeline.decoder(pipeline.networks["vae"][1], latents), {})

    def expected(params, x, condition, keys):
        """The reward as a function of the transitions' parameters; those of the last call, no transition, are fixed."""
        for index in range(first, len(times) - 1):
            x0, eps = setup.denoiser(params)(x, at(index, len(x)), condition)
            z, steps = normal(fold(keys, index), x.shape[1:]), (at(i, len(x)) for i in (index, index + 1))
            x = step_to("ancestral", setup.schedule, x0, eps, z, *steps)
        return reward(setup.denoiser(student)(x, at(-1, len(x)), condition)[0]).mean()

    def score_function(params, trajectory, condition, advantage):
        total = 0.0
        for index in range(first, len(times) - 1):
            here, there = (setup.schedule.at(at(i, len(trajectory))) for i in (index, index + 1))
            x0, eps = setup.denoiser(params)(trajectory[:, index], at(index, len(trajectory)), condition)
            total += log_probability(trajectory[:, index + 1], *posterior(x0, eps, *here, *there))
        return (advantage * total).mean()

    @jax.jit
    def draw(key):
        trajectory, x0 = setup.trajectory(student, {"condition": condition}, jax.random.split(key, CHUNK))
        return trajectory, reward(x0)

    def gradients(function):
        """Mean gradient of a chunk as one vector, and the mean square norm of those of `TINY` videos."""

        def one(part):
            return jnp.concatenate([x.ravel() for x in jax.tree.leaves(jax.grad(function)(student, *part))])

        def run(*arrays):
            found = jax.lax.map(one, jax.tree.map(lambda x: x.reshape(-1, TINY, *x.shape[1:]), arrays))
            return found.mean(0), (found**2).sum(1).mean()

        return jax.jit(run)

    exact, noisy = gradients(expected), gradients(score_function)
    drawn = [draw(jax.random.key(index)) for index in range(CHUNKS)]
    means = np.mean([rewards for _, rewards in drawn], axis=0).reshape(-1, len(CAPTIONS)).mean(0)
    truth, squares = [], []
    for index, (trajectory, rewards) in enumerate(drawn):
        keys = jax.random.split(jax.random.key(CHUNKS + index), CHUNK)
        truth.append(exact(trajectory[:, first], condition, keys)[0])
        squares.append(float(noisy(trajectory, condition, rewards - means[prompts])[1]))
    halves = [sum(truth[half::2]) * 2 / CHUNKS for half in (0, 1)]
    signal = float(halves[0] @ halves[1])  # without the square of their errors
    noise = TINY * float(np.mean(squares))
    print(f"|g| = {signal**0.5:.3g}, s = {noise**0.5:.4g}: equal with {noise / signal:,.0f} videos")
    for count in (16, 64, 256, 1024, 4096, 16384):
        print(f"{count:6} videos: cosine {(signal / (signal + noise / count)) ** 0.5:.4f}")


if __name__ == "__main__":
    run(main)
