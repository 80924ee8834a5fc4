"""python decode_on_mesh.py: the collectives of decoding two videos on each of eight devices, a list in JSON."""

import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[2]))
from dollar_jax import sharding
from dollar_jax.models import build, independent_chunks

NETWORK = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 8}


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 8, "context": 1}))
    vae = build("cogvideox_vae", NETWORK | {"temporal_compression_ratio": 2})
    params = sharding.with_shardings(jax.eval_shape(vae.init, jax.random.key(0)), mesh)
    latents = jax.ShapeDtypeStruct((16, 4, 4, 4, 8), jnp.float32, sharding=sharding.batch_sharding(mesh))

    def decode(params, latents):
        return sharding.one_by_one(lambda z: independent_chunks.decode(vae, params, z, chunk=2), latents)

    with jax.set_mesh(mesh):
        program = jax.jit(decode).lower(params, latents)
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    print(json.dumps(re.findall(rf" ({kinds})(?:-start)?\(", program.compile().as_text())))


if __name__ == "__main__":
    main()
