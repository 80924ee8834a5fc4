"""python adapter_on_mesh.py: the gradient of an adapter on one device and on eight, in JSON.

It prints the largest difference of each matrix relative to its largest entry, and the axis along which each is split.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[2]))
from dollar_jax import sharding
from dollar_jax.models import build, lora
from dollar_jax.types import Condition

WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 32,
    "freq_dim": 8,
    "text_dim": 6,
    "text_length": 3,
}


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    network = build("wan_dit", WAN | {"in_channels": 4, "out_channels": 4, "num_layers": 2, "text_length": 3})
    rng = np.random.default_rng(0)

    def random(shapes):
        return jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), shapes)

    base = random(jax.eval_shape(network.init, jax.random.key(0)))
    layers = lora.adaptable(network, ("*attention/*", "*/expand", "*/contract"))
    adapter = random(jax.eval_shape(lambda: lora.init(base, layers, 4, jax.random.key(0))))
    batch = random(jax.ShapeDtypeStruct((4, 3, 4, 4, 4), jnp.float32)), np.linspace(0, 900, 4, dtype=np.float32)
    condition = Condition(random(jax.ShapeDtypeStruct((4, 3, 6), jnp.float32)), np.ones((4, 3), bool))

    def loss(adapter, base, *inputs):
        return (network.apply(lora.attach(base, adapter, 8.0), *inputs) ** 2).sum()

    def gradient(*sizes):
        config = ConfigDict(dict(zip(sharding.AXES, sizes, strict=True)))
        mesh = sharding.make_mesh(config, jax.devices()[: int(np.prod(sizes))])
        with jax.set_mesh(mesh):
            params = [jax.device_put(tree, sharding.shard(tree, mesh)) for tree in (adapter, base)]
            inputs = jax.device_put((*batch, condition), sharding.batch_sharding(mesh))
            return params[0], jax.device_get(jax.jit(jax.grad(loss))(*params, *inputs))

    (_, wanted), (split, found) = gradient(1, 1, 1), gradient(2, 2, 2)
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(a).max()), wanted, found)
    axes = jax.tree.map(lambda x: list(x.sharding.spec).index("fsdp") - x.ndim, split)
    print(json.dumps([flatten_dict(differences, sep="/"), flatten_dict(axes, sep="/")]))


if __name__ == "__main__":
    main()
