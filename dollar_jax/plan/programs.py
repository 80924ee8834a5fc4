"""The jitted programs of one iteration of a distillation, with abstract arguments, which take no memory."""

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
from dollar_jax.models.network import narrowed, parameter_shapes
from dollar_jax.objectives import group_of, used
from dollar_jax.pipeline import Pipeline
from dollar_jax.rewards.judge import Judge
from dollar_jax.sharding import batch_sharding, check_batch, replicated, with_shardings
from dollar_jax.stages.common import network_options
from dollar_jax.stages.distill import make_setup
from dollar_jax.steps.iteration import batches_drawn, compiled, parts
from dollar_jax.train import abstract


@dataclass(frozen=True)
class Program:
    """A jitted function of the iteration.

    Attributes:
      name: name of the part (see `steps.iteration`); `NAME: propose` and `NAME: decode` prepare its scored batch.
      times: number of calls in an iteration.
      step: the jitted function.
      arguments: ShapeDtypeStructs with shardings.
    """

    name: str
    times: int
    step: Callable
    arguments: tuple


@dataclass(frozen=True)
class Iteration:
    """The programs of one iteration, and the arrays that stay in memory between them.

    Attributes:
      programs: programs in their order.
      resident: name -> tree of ShapeDtypeStructs with shardings: the arrays in memory.
      groups: names of the objectives.
    """

    programs: list[Program]
    resident: dict[str, Any]
    groups: tuple[str, ...]


def iteration(config: ConfigDict, card: Card, mesh: Mesh) -> Iteration:
    """The programs of one iteration. Call it under `jax.set_mesh(mesh)`, as in a run.

    Args:
      config: config of a student, see `stages.student.student_config`.
      card: card of the teacher.
      mesh: mesh of the run.
    Raises:
      UserError: the mesh does not divide the batches, or a network cannot be built.
    """
    generator, part = config.generator, card["transformer"]
    check_batch(generator.batch_size, mesh, generator.accumulate, group_of(used(generator)))
    network = build(part["architecture"], part["config"], **network_options(config))
    spread = batch_sharding(mesh)
    batch = abstract_batch(card, generator.batch_size, spread)
    one = jax.tree.map(lambda x: x.update(shape=(1, *x.shape[1:]), sharding=None), batch["condition"])
    setup = make_setup(config, card, network, one)
    vae_network = build(card["vae"]["architecture"], card["vae"]["config"])
    key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=replicated(mesh))
    vae = with_shardings(parameter_shapes(vae_network), mesh)
    pipeline = Pipeline(card, {"vae": (vae_network, vae)}, None)
    teacher = with_shardings(parameter_shapes(network), mesh)
    frozen = {"teacher": narrowed(teacher, config.dtype), "negative": one, "empty": one}
    if "pixel_reward" in setup.needs:
        judge = Judge(config.reward)
        setup = replace(setup, decode=pipeline.decoder, pixel_reward=judge.score)
        prepared = judge.prepare([config.show_captions[0]] * generator.batch_size)
        prepared = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread), prepared)
        frozen |= {"vae": vae, "reward": with_shardings(jax.eval_shape(lambda: judge.params), mesh)}
    state = abstract(setup.init, mesh, teacher, key, offload=config.offload)
    start = {"start": state.student} if "start" in setup.needs else {}
    frozen |= start
    programs = []
    for part in compiled(parts(setup), state, mesh):
        size, rows = generator.batch_size, batch
        if part.batch == "few":
            size = config.reward.batch_size
            check_batch(size, mesh)
            rows = abstract_batch(card, size, spread)
        if part.propose:
            propose = Program(f"{part.name}: propose", part.times, part.propose, (state, frozen, rows, key))
            rows = jax.eval_shape(part.propose, *propose.arguments)
            rows = jax.tree.map(lambda x: x.update(sharding=spread), rows)
            scored = rows.pop("scored")
            decode = Program(f"{part.name}: decode", part.times, _decode(pipeline), (vae, scored))
            programs += [propose, decode]
            rows["reward"] = jax.ShapeDtypeStruct(scored.shape[:1], jnp.float32, sharding=spread)
            rows["prompt"] = jax.ShapeDtypeStruct(scored.shape[:1], jnp.int32, sharding=spread)
        if part.prepared:
            rows = rows | {"prepared": prepared}
        programs.append(Program(part.name, part.times, part.step, (state, frozen, rows, key)))
    fields = {name: tree for name, tree in vars(state).items() if name != "optimizers"}
    optimizers = {f"Adam of {name}": tree for name, tree in state.optimizers.items()}
    drawn = abstract_batch(card, batches_drawn(config, setup.needs) * generator.batch_size, spread)
    resident = {**fields, **optimizers, **start, "teacher": frozen["teacher"], "VAE": vae, "batch": drawn}
    return Iteration(programs, resident, tuple(objective.name for objective in setup.objectives))


def device_bytes(tree: Any, memory: str = "device") -> int:
    """Bytes per device of these ShapeDtypeStructs: on the device, or in the host's memory ('pinned_host')."""

    def size(leaf):
        sharding = leaf.sharding
        on_host = sharding is not None and sharding.memory_kind == "pinned_host"
        if on_host != (memory == "pinned_host"):
            return 0
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def abstract_batch(card: Card, size: int, sharding: NamedSharding) -> dict:
    """An abstract batch of data; the condition has the shapes of the card's text encoder."""
    part, tokens = card["text_encoder"], (size, card["tokenizer"]["length"])
    encoder = build(part["architecture"], part["config"])
    words = jax.ShapeDtypeStruct(tokens, jnp.int32), jax.ShapeDtypeStruct(tokens, bool)
    params = parameter_shapes(encoder)
    latents = jax.ShapeDtypeStruct((size, *card["latent_shape"]), jnp.float32)
    batch = {"latents": latents, "condition": jax.eval_shape(encoder.apply, params, *words)}
    return jax.tree.map(lambda x: x.update(sharding=sharding), batch)


def _decode(pipeline: Pipeline) -> Callable:
    """Jitted (params, latents) -> videos for the reward."""

    def decode(params, latents):
        with jax.named_scope("vae"):
            return replace(pipeline, networks={"vae": (pipeline.networks["vae"][0], params)}).decode_on_devices(latents)

    return jax.jit(decode)
