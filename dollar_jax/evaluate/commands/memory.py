"""python -m dollar_jax.evaluate memory: what tuning by a reward takes of memory (Tab. 1 and Tab. 10 of the paper).

Latent reward models beside CLIP-H, the network of HPSv2 and PickScore: parameters, and the bytes that programs compiled
for one video of 128 x 192 x 320 take for the reward, and for the reward and its gradient with respect to latents or
frames. Nothing is run, and no weights are needed. `dollar_jax.evaluate.memory` says what the columns mean.
"""

import json
from itertools import chain

from absl import flags

from dollar_jax.files import write_atomically

_FRAMES = flags.DEFINE_multi_integer("frames", [12, 24, 64, 128], "Frames that CLIP-H reads; repeated.", lower_bound=1)
_DECODER = flags.DEFINE_bool("decoder", False, "CLIP-H behind the decoder, too: minutes of compilation.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"], "Of CLIP-H and decoder; default: bfloat16, on CPUs float32."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Compile for v5p:2x2x1, v6e:2x2, ..., one device of it; else for here."
)
_OUT = flags.DEFINE_string("out", None, "A JSON file for the numbers, in bytes.")


def main() -> None:
    import jax

    from dollar_jax.plan.topology import make_devices

    device = (make_devices(_TOPOLOGY.value) if _TOPOLOGY.value else jax.devices())[0]

    from dollar_jax.evaluate import memory

    # A CPU computes in float32 what is bfloat16, and has it twice.
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
