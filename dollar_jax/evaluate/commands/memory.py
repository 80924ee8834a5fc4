"""python -m dollar_jax.evaluate memory: the memory that tuning for a reward needs (Tab. 1 and Tab. 10 of the paper).

The table compares latent reward models with CLIP-H, the network of HPSv2 and PickScore: number of parameters, and bytes
of the compiled programs for one video of 128 x 192 x 320. One program computes the reward, the other the reward and its
gradient with respect to latents or frames. The programs are not run, and no weights are needed. The columns are
explained in `dollar_jax.evaluate.memory`.
"""

import json
from itertools import chain

from absl import flags

from dollar_jax.files import write_atomically

_FRAMES = flags.DEFINE_multi_integer("frames", [12, 24, 64, 128], "Frames that CLIP-H reads. Repeat.", lower_bound=1)
_DECODER = flags.DEFINE_bool("decoder", False, "Also CLIP-H after the decoder: takes minutes to compile.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"], "dtype of CLIP-H and decoder; default: bfloat16, on CPUs float32."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Compile for a device of v5p:2x2x1, v6e:2x2, ...; default: of this machine."
)
_OUT = flags.DEFINE_string("out", None, "A JSON file for the numbers, in bytes.")


def main() -> None:
    import jax

    from dollar_jax.plan.topology import make_devices

    device = (make_devices(_TOPOLOGY.value) if _TOPOLOGY.value else jax.devices())[0]

    from dollar_jax.evaluate import memory

    # A CPU computes bfloat16 in float32, and would hold the arrays in both.
    dtype = _DTYPE.value or ("float32" if device.platform == "cpu" else "bfloat16")
    decoded = memory.decoded_rewards(dtype) if _DECODER.value else ()
    rewards = chain(memory.latent_rewards(), memory.pixel_rewards(_FRAMES.value, dtype), decoded)
    rows = [memory.measure(reward, device) for reward in rewards]
    if _OUT.value:
        content = {"device": device.device_kind, "dtype": dtype, "rows": rows}
        write_atomically(_OUT.value, json.dumps(content, indent=1) + "\n")
    print(memory.table(rows))
    print(
        f"compiled for {device.device_kind}; CLIP-H and decoder in {dtype}, latent reward models in float32."
        "\nArguments, results and temporaries at their peak; 1 GB = 1e9 bytes"
    )
    if device.platform == "cpu":
        print("A CPU's program fuses and lays out arrays otherwise than an accelerator's: --topology compiles for TPUs")
