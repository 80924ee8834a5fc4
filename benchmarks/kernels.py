"""The cost of the attention kernel on TPUs, from the schedules of their compiler; no TPU is needed.

    python -m benchmarks.kernels --topology=v5p:1x1x1         also v5e:1x1, v6e:1x1; some minutes

prints, for heads of 64 and 128, the instruction bundles for 1024 logits of the forward pass (fwd) and of the gradient
(dkv). `dollar_jax.plan.chips` has the results, from which the planner predicts times. The machine starts one bundle a
cycle on each of its cores if it never waits. Heads of 64 are those of 9,826 tokens, heads of 128 of 32,760: the
networks of CogVideoX-2B and Wan 1.3B.
"""

import os
import re
import tempfile
from pathlib import Path

from absl import flags

from dollar_jax.cli import run

_TOPOLOGY = flags.DEFINE_string("topology", "v5p:1x1x1", "One chip: v5p:1x1x1, v5e:1x1, v6e:1x1.")
SIZES = {64: (30, 9826), 128: (12, 32760)}  # width of a head: heads, tokens
DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = DUMP.format(folder)
        from dollar_jax.plan.topology import make_devices  # the compiler reads its arguments once

        devices = make_devices(_TOPOLOGY.value)
        for width, (heads, tokens) in SIZES.items():
            compile_gradient(devices, heads, tokens, width)
            for name, (kernel, bundles) in sorted(schedules(Path(folder)).items()):
                print(f"{_TOPOLOGY.value.partition(':')[0]}  {kernel}  heads of {width}: {bundles:.2f}   ({name})")
            for path in Path(folder).iterdir():
                path.unlink()


def compile_gradient(devices, heads: int, tokens: int, width: int) -> None:
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from dollar_jax.models.attention import attention

    mesh = Mesh(devices[:1], "x")
    x = jax.ShapeDtypeStruct((1, tokens, heads, width), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    gradient = jax.grad(lambda *x: attention(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    with jax.set_mesh(mesh):
        jax.jit(gradient).lower(x, x, x).compile(compiler_options={"xla_tpu_no_crash_on_oom": True})


def schedules(folder: Path) -> dict[str, tuple[str, float]]:
    """{name: (fwd or dkv, bundles for 1024 logits)} of the kernels that the compiler wrote to a folder."""
    found = {}
    for path in folder.glob("*splash_mha_*-final_bundles.txt"):
        if "schedule-analysis" in path.name:
            continue
        text = path.read_text()
        name, kernel = re.search(r"%(splash_mha_(fwd|dkv)[\w.]*) = ", text).groups()
        windows = re.findall(r"The window shape is bf16\[([\d,]+)\]", text)[:2]  # of queries and keys, tokens last
        queries, keys = (int(window.rpartition(",")[2]) for window in windows)
        found[name] = kernel, 1024 * inner(text) / (queries * keys)
    return found


def inner(text: str) -> int:
    """Bundles of the region in which a kernel spends its steps, once for each block of logits.

    Regions nest: it is the innermost one that has most of the bundles of the one around it. What starts and ends a row
    of blocks lies beside it.
    """
    begun, regions = {}, {}
    for line, words in enumerate(text.splitlines()):
        for number in re.findall(r"Start region (\d+)", words):
            begun.setdefault(number, line)
        for number in re.findall(r"End region (\d+)", words):
            regions[number] = line - begun[number]
    sizes = sorted(regions.values(), reverse=True)
    size = sizes[0]
    for smaller in sizes[1:]:
        if smaller < size / 2:
            break
        size = smaller
    return size


if __name__ == "__main__":
    run(main)
