"""What the TPU compiler expects of one network: forward pass and gradient of one video, by place in the code.

    python -m benchmarks.network --config=configs/dollar.py --topology=v5p:1x1x1
    python -m benchmarks.network --config=configs/wan.py --topology=v6e:1x1 --config.remat=attention_saveable

needs no TPU, but `pip install "jax[tpu]"` and a few minutes. Times are cycles over the clock, on one chip; see
`dollar_jax.plan.cycles`. `python -m dollar_jax.plan --predict` does so for a whole distillation.
"""

from collections import Counter

from absl import flags
from ml_collections import config_flags

from dollar_jax.cli import required, run

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config of the videos and the teacher.", lock_config=True)
_TOPOLOGY = flags.DEFINE_string("topology", "v5p:1x1x1", "One chip: v5p:1x1x1, v5e:1x1, v6e:1x1.")
LARGEST = 20


def main() -> None:
    required(_CONFIG)
    from dollar_jax.plan.topology import make_devices, parse  # JAX starts after these

    chip, _ = parse(_TOPOLOGY.value)
    devices = make_devices(_TOPOLOGY.value)
    import jax
    import jax.numpy as jnp

    from dollar_jax.models import build
    from dollar_jax.models.network import parameter_shapes
    from dollar_jax.plan import cycles, flops, hlo
    from dollar_jax.plan.estimate import compile_program
    from dollar_jax.plan.programs import Program, abstract_batch
    from dollar_jax.plan.teachers import teacher_card
    from dollar_jax.sharding import batch_sharding, make_mesh, with_shardings
    from dollar_jax.stages.common import network_options

    config = _CONFIG.value
    card, mesh = teacher_card(config, ""), make_mesh(config.mesh, devices)
    part = card["transformer"]
    with jax.set_mesh(mesh):
        network = build(part["architecture"], part["config"], **network_options(config))
        params = with_shardings(parameter_shapes(network), mesh)
        batch = abstract_batch(card, 1, batch_sharding(mesh))
        times = jax.ShapeDtypeStruct((1,), jnp.float32, sharding=batch_sharding(mesh))

        def loss(params, latents, times, condition):
            return jnp.mean(network.apply(params, latents, times, condition) ** 2)

        arguments = params, batch["latents"], times, batch["condition"]
        program = Program(part["architecture"], 1, jax.jit(jax.value_and_grad(loss)), arguments)
        traced, compiled = compile_program(program, devices[0].platform, chip, predict=True)
    counted = cycles.count(hlo.parse(compiled.as_text()), chip, lambda scopes: "")
    if unknown := counted.pop(None, 0):
        print(f"{unknown} runs of kernels that were not measured are left out")
    total, passes = counted.total(), Counter()
    for (_, _, direction), value in counted.items():
        passes[direction] += value
    parts = ", ".join(f"{name} {1e3 * value / chip.clock:.1f}" for name, value in passes.items())
    print(f"{1e3 * total / chip.clock:.1f} ms: {parts}; {compiled.memory_analysis().temp_size_in_bytes / 1e9:.2f} GB")
    work = flops.count(traced.jaxpr, lambda path: cycles.RECOMPUTED in path)
    peak = chip.flops * total / chip.clock
    share, once = work.total() / peak, work[False] / peak
    print(f"{work.total() / 1e12:.1f} TFLOP, {share:.1%} of the peak rate; {once:.1%} without what is computed again")
    for (_, place, direction), value in counted.most_common(LARGEST):
        print(f"{1e3 * value / chip.clock:8.1f} ms {value / total:6.1%}  {direction:10}  {place}")


if __name__ == "__main__":
    run(main)
