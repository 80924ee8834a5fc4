"""The programs of one iteration of a distillation, with abstract arguments: nothing here takes memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from dollar_jax.checkpoint import Card
from dollar_jax.models import build
from dollar_jax.pipeline import Pipeline
from dollar_jax.rewards.judge import Judge
from dollar_jax.sharding import batch_sharding, check_batch, replicated, with_shardings
from dollar_jax.stages.common import network_options
from dollar_jax.stages.distill import make_setup, make_steps, needs_of
from dollar_jax.train import abstract


@dataclass(frozen=True)
class Program:
    """A jitted function of the iteration.

    Attributes:
      name: generator, fake_score, finetune, propose, trajectory, decode or reward.
      times: how often an iteration calls it.
      step: the jitted function.
      arguments: ShapeDtypeStructs with shardings.
    """

    name: str
    times: int
    step: Callable
    arguments: tuple


@dataclass(frozen=True)
class Iteration:
    """What one iteration runs, and what lies in memory all the while.

    Attributes:
      programs: in their order.
      resident: trees of ShapeDtypeStructs with shardings, by name.
      groups: names of the objectives.
    """

    programs: list[Program]
    resident: dict[str, Any]
    groups: tuple[str, ...]


def iteration(config: ConfigDict, card: Card, mesh: Mesh) -> Iteration:
    """The programs of a student's config (see `stages.distill.student_config`) for the teacher of this card, under its
    mesh. Under `jax.set_mesh(mesh)`, as a run is.

    Raises:
      UserError: the mesh cannot share the batches, or what building the networks raises.
    """
    generator = config.generator
    objectives = tuple(name for name, weight in generator.objectives.items() if weight)
    needs = needs_of(generator)
    check_batch(generator.batch_size, mesh, generator.accumulate)
    part = card["transformer"]
    network = build(part["architecture"], part["config"], **network_options(config))
    updates = config.fake_score.updates * ("fake_score" in needs)
    batch = _batch(card, generator.batch_size, batch_sharding(mesh))
    setup = make_setup(config, card, network, batch["text"].shape[1:])
    key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=replicated(mesh))
    teacher = with_shardings(jax.eval_shape(network.init, key), mesh)
    state = abstract(setup.init, mesh, teacher, key, offload=config.offload)
    steps = make_steps(setup, state, mesh)
    teacher = jax.tree.map(lambda x: x.update(dtype=jnp.dtype(config.dtype)), teacher)
    frozen = {"teacher": teacher, "null_text": batch["text"].update(shape=(1, *batch["text"].shape[1:]), sharding=None)}
    vae_network = build(card["vae"]["architecture"], card["vae"]["config"])
    vae, spread = with_shardings(jax.eval_shape(vae_network.init, key), mesh), batch_sharding(mesh)
    pipeline = Pipeline(card, {"vae": (vae_network, vae)}, None)
    programs, scored = [], {"reward": jax.ShapeDtypeStruct((generator.batch_size,), jnp.float32, sharding=spread)}
    if "trajectory" in needs:
        walk = Program("trajectory", 1, steps["trajectory"], (state, batch, key))
        drawn = jax.eval_shape(walk.step, *walk.arguments)
        programs += [walk, Program("decode", 1, _decode(pipeline), (vae, batch["latents"]))]
        prompt = jax.ShapeDtypeStruct((generator.batch_size,), jnp.int32, sharding=spread)
        batch |= {"trajectory": drawn["trajectory"].update(sharding=spread), "prompt": prompt, **scored}
    if "pixel_reward" in needs:
        judge = Judge(config.reward)
        steps = make_steps(replace(setup, decode=pipeline.decoder, pixel_reward=judge.score), state, mesh)
        prepared = judge.prepare([config.show_captions[0]] * generator.batch_size)
        batch["prepared"] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread), prepared)
        frozen |= {"vae": vae, "reward": with_shardings(jax.eval_shape(lambda: judge.params), mesh)}
    programs.append(Program("generator", 1, steps["generator"], (state, frozen, batch, key)))
    batch = {name: batch[name] for name in ("latents", "text", "text_mask")}
    if updates:
        programs.append(Program("fake_score", updates, steps["fake_score"], (state, {}, batch, key)))
    if "reward_model" in needs:
        if config.reward.step == "separate":
            programs.append(Program("finetune", 1, steps["finetune"], (state, frozen, batch, key)))
        check_batch(config.reward.batch_size, mesh)
        few, proposed = (_batch(card, count * config.reward.batch_size, spread) for count in (1, 2))
        rewards = jax.ShapeDtypeStruct((2 * config.reward.batch_size,), jnp.float32, sharding=spread)
        programs += [
            Program("propose", 1, steps["propose"], (state, few, key)),
            Program("decode", 1, _decode(pipeline), (vae, proposed["latents"])),
            Program("reward", 1, steps["reward"], (state, {}, proposed | {"reward": rewards}, key)),
        ]
    fields = {name: tree for name, tree in vars(state).items() if name != "optimizers"}
    optimizers = {f"Adam of {name}": tree for name, tree in state.optimizers.items()}
    drawn = _batch(card, (1 + updates) * generator.batch_size, spread)  # the generator's and the fake score's
    resident = {**fields, **optimizers, "teacher": teacher, "VAE": vae, "batch": drawn}
    return Iteration(programs, resident, objectives)


def device_bytes(tree: Any, memory: str = "device") -> int:
    """Bytes of these ShapeDtypeStructs on each device, or in the host's memory ('pinned_host') for each device."""

    def size(leaf):
        sharding = leaf.sharding
        on_host = sharding is not None and sharding.memory_kind == "pinned_host"
        if on_host != (memory == "pinned_host"):
            return 0
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def _batch(card: Card, size: int, sharding: NamedSharding) -> dict:
    length = card["tokenizer"]["length"]
    width = card["text_encoder"]["config"]["d_model"]
    shapes = {
        "latents": ((size, *card["latent_shape"]), jnp.float32),
        "text": ((size, length, width), jnp.float32),
        "text_mask": ((size, length), bool),
    }
    return {name: jax.ShapeDtypeStruct(*shape, sharding=sharding) for name, shape in shapes.items()}


def _decode(pipeline: Pipeline) -> Callable:
    """(params, latents) -> the videos that the reward sees."""

    def decode(params, latents):
        with jax.named_scope("vae"):
            return replace(pipeline, networks={"vae": (pipeline.networks["vae"][0], params)}).decode_on_devices(latents)

    return jax.jit(decode)
