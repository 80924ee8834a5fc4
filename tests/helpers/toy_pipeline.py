"""A model of toy networks: captions in, small videos out; in memory, or as a folder that commands can load."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import toy

from dollar_jax import checkpoint
from dollar_jax.data.text import write_word_tokenizer
from dollar_jax.models.network import Network
from dollar_jax.pipeline import Pipeline
from dollar_jax.types import Condition

LENGTH = 8
CARD = {
    "transformer": {"architecture": "toy_pipeline:transformer", "config": {}, "path": "transformer", "item": ""},
    "role": "student",
    "prediction_type": "v",
    "schedule": {"kind": "ddpm"},
    "times": [499, 999],
    "sampler": "renoise",
    "guidance": 0.0,
    "negative_prompt": "",
    "vae": {"scaling_factor": 1.0},
    "tokenizer": {"path": "tokenizer", "length": LENGTH},
    "video": {"frames": 2, "height": 16, "width": 16, "fps": 8, "independent_chunk": 0},
    "latent_shape": [2, 2, 2, 4],
}


def transformer(dtype="float32", remat="", attention=None) -> Network:
    return toy.TRANSFORMER


def vae() -> Network:
    """Eight pixels for each latent."""

    def apply(params, x, method):
        if method == "encode":
            mean = x[:, :, ::8, ::8, [0, 1, 2, 0]]
            return mean, jnp.zeros_like(mean)
        return jnp.tanh(x[..., :3] + params["shift"]).repeat(8, 2).repeat(8, 3)

    return Network(lambda key: {"shift": 0.1 * jax.random.normal(key)}, apply)


def text_encoder() -> Network:
    return Network(
        lambda key: {"embedding": jax.random.normal(key, (32, 2))},
        lambda params, tokens, mask: Condition(params["embedding"][tokens], mask),
    )


NETWORKS = {"transformer": transformer(), "vae": vae(), "text_encoder": text_encoder()}


def _tokenizer(captions, **_):
    ids = np.array([[ord(letter) % 32 for letter in caption[:LENGTH].ljust(LENGTH)] for caption in captions])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def make(seed=0, **changes):
    """A pipeline with random parameters; `changes` go to its card."""
    networks = {name: (network, network.init(jax.random.key(seed))) for name, network in NETWORKS.items()}
    return Pipeline(CARD | changes, networks, _tokenizer)


def write(folder: Path, captions) -> Path:
    """The same as a checkpoint, whose tokenizer knows the words of these captions; needs this folder in PYTHONPATH."""
    parts = {}
    for name, (_, params) in make().networks.items():
        checkpoint.save_params(folder / name, params)
        parts[name] = {"architecture": f"toy_pipeline:{name}", "config": {}, "path": name, "item": ""}
    write_word_tokenizer(folder / "tokenizer", captions)
    checkpoint.write_card(folder, CARD | parts | {"vae": parts["vae"] | CARD["vae"]})
    return folder
