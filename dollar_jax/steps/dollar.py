"""DOLLAR distillation, Alg. 1: pure step functions of the generator, the fake score and the objectives' own networks.

What they share is in `dollar_jax.steps.distillation`, the latent reward model's step in `dollar_jax.steps.reward`, the
order of the steps in `dollar_jax.steps.iteration`.
"""

import operator
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from dollar_jax.objectives import Objective
from dollar_jax.objectives.denoising import denoising_loss
from dollar_jax.objectives.policy_gradient import group_advantage
from dollar_jax.sampling import draw_times, fold, interleave, timed
from dollar_jax.steps.common import example_keys, in_pieces, mean_gradient, moving_average, update
from dollar_jax.steps.distillation import Distillation, DollarState, count, own_name
from dollar_jax.types import Key, Params


def make_generator_step(setup: Distillation, names: Collection[str] | None = None) -> Callable:
    """Makes the step (state, frozen, batch, key) -> (state, metrics) of the student and its average, Eq. 16.

    The loss is the weighted sum of the objectives: VSD + beta_CD CD + beta_FT FT in the paper.

    frozen: {'teacher': params, 'negative' and 'empty': conditions with b = 1}; for an objective on pixels also the
      parameters of the VAE ('vae') and of the reward ('reward'); for one that needs it the student of the run's start
      ('start').
    batch: {'latents', 'condition'}, with `setup.videos` False without latents; for an objective on pixels also
      'prepared', the captions prepared by the reward; for a policy gradient also 'trajectories', 'reward' and 'prompt',
      the number of each caption [b].

    Args:
      names: names of the objectives to use; None: all.
    """
    generator = setup.config.generator
    objectives = [objective for objective in setup.objectives if names is None or objective.name in names]
    optimizer = setup.optimizer("generator")

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        statistics, means = state.reward_statistics, state.prompt_means
        if "trajectories" in batch:
            prompt, reward = batch["prompt"], batch["reward"]
            statistics = statistics.add(reward)
            # The prompt's mean excludes this batch. The mean of all rewards includes it, as a small part.
            advantage = reward - means.baseline(prompt, statistics.mean)
            if setup.group > 1:
                advantage = group_advantage(reward, setup.group)
            batch = batch | {"trajectories": batch["trajectories"] | {"reward": reward, "advantage": advantage}}
            means = means.add(prompt, reward)

        def loss(student, part):
            context = setup.context(state, frozen, part, setup.whole(student, frozen), statistics)
            total, metrics = 0.0, {}
            for index, objective in enumerate(objectives):
                own = setup.own_network(objective, state.own[objective.key]) if objective.own else None
                with jax.named_scope(objective.name):
                    mine = replace(context, keys=fold(part["keys"], index + 1), own=own)
                    value, extra = objective.function(mine)
                total += objective.weight * value
                metrics |= {f"loss/{objective.name}": value, **extra}
            return total, metrics

        examples = {**batch, "keys": example_keys(key, state.step, count(batch))}
        gradient, metrics = mean_gradient(loss, state.student, examples, generator.accumulate)
        student, optimizer_state, norms = update(
            optimizer, gradient, state.optimizers["generator"], state.student, "student", metrics["loss"]
        )
        state = state.replace(
            step=state.step + 1,
            student=student,
            ema=moving_average(state.ema, student, generator.ema, state.step),
            reward_statistics=statistics,
            prompt_means=means,
            optimizers=state.optimizers | {"generator": optimizer_state},
        )
        return state, metrics | norms

    return step


def make_fake_score_step(setup: Distillation) -> Callable:
    """Makes the step (state, frozen, batch, key) -> (state, metrics) of the fake score: Eq. 4 on student samples.

    With `fake_score.updates_per_rollout` = k above 1 the step makes k updates, in which an example has one chain of the
    student with samples at all its n times (`Distillation.chain`). Each update takes the next of them in an order that
    is random for each example, and begins again after n updates; noise and its time are new each time. So each update
    has samples and times distributed as with k = 1. But its captions are those of the other updates, and the samples of
    a chain are correlated.
    """
    optimizer, generator = setup.optimizer("fake_score"), setup.config.generator
    updates, choices = setup.config.fake_score.updates_per_rollout, len(generator.times)

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        student = setup.whole(state.student, frozen)

        def loss(fake_score, part):
            keys = part["keys"]
            sample = part["sample"] if "sample" in part else setup.generate(student, part, fold(keys, 0))
            times = draw_times(fold(keys, 1), setup.schedule, sample.span)
            apply = timed(jax.named_scope("fake_score")(setup.network.apply), setup.schedule)
            network = partial(apply, setup.whole(fake_score, frozen))
            draws = sample.state, times, part["condition"], fold(keys, 2), sample.state_at
            return denoising_loss(network, setup.prediction_type, setup.schedule, *draws), {}

        def descend(trained, examples):
            fake_score, optimizer_state = trained
            gradient, metrics = mean_gradient(loss, fake_score, examples, generator.accumulate)
            *trained, norms = update(optimizer, gradient, optimizer_state, fake_score, "fake_score", metrics["loss"])
            return tuple(trained), {"loss/fake_score": metrics["loss"], **norms}

        def descend_again(trained, number):
            chosen = order[:, number % choices]
            sample = jax.vmap(lambda samples, index: jax.tree.map(lambda x: x[index], samples))(chain, chosen)
            return descend(trained, {**batch, "sample": sample, "keys": fold(examples["keys"], number + 2)})

        examples = {**batch, "keys": example_keys(key, state.step, count(batch))}
        trained = state.fake_score, state.optimizers["fake_score"]
        if updates == 1:
            trained, metrics = descend(trained, examples)
        else:
            chain = in_pieces(
                lambda part: setup.chain(student, part, fold(part["keys"], 0)), examples, generator.accumulate
            )
            order = jax.vmap(lambda key: jax.random.permutation(key, choices))(fold(examples["keys"], 1))
            # `offload` keeps the moments in the host's memory; a scan's carry cannot change its place.
            trained = jax.device_put(trained, jax.memory.Space.Device)
            trained, metrics = lax.scan(descend_again, trained, jnp.arange(updates))
            skipped = {"skipped/fake_score": metrics["skipped/fake_score"].max()}
            metrics = jax.tree.map(operator.itemgetter(-1), metrics) | skipped
        fake_score, optimizer_state = trained
        optimizers = state.optimizers | {"fake_score": optimizer_state}
        return state.replace(fake_score=fake_score, optimizers=optimizers), metrics

    return step


def make_own_step(setup: Distillation, objective: Objective) -> Callable:
    """Makes the step (state, frozen, batch, key) -> (state, metrics) of an objective's own network."""
    name, key_of, settings = own_name(objective), objective.key, objective.settings
    own_loss = partial(objective.own.loss, **settings.get("options", {}))
    optimizer, decay = setup.own_optimizer(objective), settings.get("ema", 0.0)

    def step(state: DollarState, frozen: Params, batch: dict, key: Key) -> tuple[DollarState, dict]:
        def loss(params, part):
            context = setup.context(state, frozen, part, setup.whole(state.student, frozen), state.reward_statistics)
            own = setup.own_network(objective, params)
            with jax.named_scope(name):
                return own_loss(replace(context, keys=fold(part["keys"], 1), own=own))

        examples = {**batch, "keys": example_keys(key, state.step, count(batch))}
        gradient, metrics = mean_gradient(loss, state.own[key_of], examples, setup.config.generator.accumulate)
        params, optimizer_state, norms = update(
            optimizer, gradient, state.optimizers[name], state.own[key_of], name, metrics["loss"]
        )
        averages = state.own_ema
        if decay:
            averages = averages | {key_of: moving_average(averages[key_of], params, decay, state.step)}
        state = state.replace(
            own=state.own | {key_of: params},
            own_ema=averages,
            optimizers=state.optimizers | {name: optimizer_state},
        )
        return state, {f"loss/{name}": metrics.pop("loss"), **metrics, **norms}

    return step


def make_proposal(setup: Distillation) -> Callable:
    """Makes (state, frozen, batch, key) -> batch for the reward model, before scoring (Alg. 1, line 16).

    The result has 2 b rows {'latents', 'condition', 'scored'}: the clip x of each caption, followed by the student's
    sample x^ for it; without videos two samples. The caller decodes the latents 'scored' and scores the videos with the
    true reward.
    """

    def propose(state: DollarState, frozen: Params, batch: dict, key: Key) -> dict:
        keys, student = example_keys(key, state.step, count(batch)), setup.whole(state.student, frozen)
        generated = setup.generate(student, batch, keys).x0
        other = batch["latents"] if setup.videos else setup.generate(student, batch, fold(keys, 3)).x0
        latents = interleave(other, generated)
        condition = interleave(batch["condition"], batch["condition"])
        return {"latents": latents, "condition": condition, "scored": latents}

    return propose


def make_trajectory(setup: Distillation) -> Callable:
    """Makes (state, frozen, batch, key) -> batch for a policy gradient, before scoring (Alg. 2, lines 5-11).

    It adds 'trajectories', {'states' [b n f h w c] of the student's chain, their 'condition'}, and 'scored'
    [b f h w c], the x0 at its end. The caller decodes the latents 'scored' and scores the videos with the true reward.
    In a group, see `policy_gradient`, all rows have the condition of the first.
    """

    def follow(state: DollarState, frozen: Params, batch: dict, key: Key) -> dict:
        keys = example_keys(key, state.step, count(batch))
        condition = jax.tree.map(lambda x: jnp.repeat(x[:: setup.group], setup.group, axis=0), batch["condition"])
        states, x0 = setup.trajectory(setup.whole(state.student, frozen), {"condition": condition}, keys)
        return {**batch, "trajectories": {"states": states, "condition": condition}, "scored": x0}

    return follow


def split_batch(batch: dict, parts: int) -> list[dict]:
    """Splits a batch of parts x b rows into `parts` batches of b rows; row i goes to batch i mod parts.

    So each device splits its own rows, and the batches are the same on every mesh.
    """

    def rows(x):  # the part is the first axis, so that a part is a slice
        return rearrange(x, "(b parts) ... -> parts b ...", parts=parts)

    split = jax.tree.map(rows, batch)
    return [jax.tree.map(operator.itemgetter(part), split) for part in range(parts)]
