"""Networks keep the contract of their role, and one that does not is told which part is missing."""

import jax
import jax.numpy as jnp
import pytest
import toy_family
import toy_pipeline

from dollar_jax.errors import UserError
from dollar_jax.models import build, latent_reward, roles
from dollar_jax.models.network import Network
from dollar_jax.types import Condition

SHAPE = jax.ShapeDtypeStruct
LATENTS = SHAPE((1, 3, 4, 6, 4), jnp.float32)
CONDITION = Condition(SHAPE((1, 5, 8), jnp.float32), SHAPE((1, 5), bool))
WORDS = SHAPE((1, 5), jnp.int32), SHAPE((1, 5), bool)
DIT = {"num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_embed_dim": 8}
DIT |= {"num_layers": 1, "time_embed_dim": 8}
WAN = {"num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 8}
WAN |= {"num_layers": 1, "ffn_dim": 8, "freq_dim": 8}
VAE = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
T5 = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("role", "network", "examples"),
    [
        ("transformer", lambda: build("cogvideox_dit", DIT), (LATENTS, CONDITION)),
        ("transformer", lambda: build("wan_dit", WAN), (LATENTS, CONDITION)),
        ("vae", lambda: build("cogvideox_vae", VAE), (SHAPE((1, 9, 8, 8, 3), jnp.float32),)),
        ("text_encoder", lambda: build("t5", T5), WORDS),
        ("reward_model", lambda: latent_reward.build(4), (SHAPE((1, 3, 24, 40, 4), jnp.float32), CONDITION)),
        ("reward_model", lambda: latent_reward.build(4, 8), (SHAPE((1, 3, 24, 40, 4), jnp.float32), CONDITION)),
        ("vae", toy_family.vae, (SHAPE((1, 5, 8, 8, 3), jnp.float32),)),
        ("text_encoder", lambda: toy_family.text_encoder(9), WORDS),
        ("text_encoder", toy_pipeline.text_encoder, WORDS),
    ],
)
def test_networks_that_keep_it(role, network, examples):
    roles.require(role, network(), "ours", *examples)


def network(apply):
    return Network(lambda key: {}, apply)


def refused(role, apply, words, *examples):
    with pytest.raises(UserError, match=rf"^my:net as {role}: .*{words}.*see dollar_jax/models/roles.py$"):
        roles.require(role, network(apply), "my:net", *examples)


def test_networks_that_do_not():
    refused("transformer", lambda params, x, times: x, "positional argument", LATENTS, CONDITION)
    refused("transformer", lambda p, x, t, c: x[..., :3], r"array of shape \(1, 3, 4, 6, 4\), not", LATENTS, CONDITION)
    refused("transformer", lambda p, x, t, text: x + text.mean(), "no attribute 'mean'", LATENTS, CONDITION)
    video = SHAPE((1, 5, 8, 8, 3), jnp.float32)
    refused("vae", lambda p, x: x, "unexpected keyword argument 'method'", video)
    refused("vae", lambda p, x, method: x, r"encode\(video\) must return mean and log variance", video)
    halves = {"encode": lambda x: (x[:, :, ::2], x[:, :, ::2]), "decode": lambda x: x}
    refused("vae", lambda p, x, method: halves[method](x), r"decode\(latents\) must return an array of shape", video)
    refused("text_encoder", lambda p, tokens: tokens, "positional argument", *WORDS)
    refused("text_encoder", lambda p, tokens, mask: tokens[..., None] * 1.0, "a dollar_jax.types Condition", *WORDS)
    refused("reward_model", lambda p, x, condition: x.mean(), r"array of shape \(1,\), not \(\)", LATENTS, CONDITION)
