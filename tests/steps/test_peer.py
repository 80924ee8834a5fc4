"""Updates of student and fake score beside the same ones in PyTorch with diffusers' networks."""

import jax
import jax.numpy as jnp
import pytest
import stock
import stock_wan
import torch
from same_steps import Ours, differences, recipe
from torch_steps import FAMILIES, Peer, random_networks

from dollar_jax.types import Condition

SIZES = {"cogvideox": (stock.TRANSFORMER, 12), "wan": (stock_wan.TRANSFORMER, 512)}  # and number of words
SHAPE, BATCH, WIDTH = (3, 4, 6, 4), 3, 24


@pytest.mark.parametrize(("name", "part"), [("cogvideox", "generator"), ("wan", "fake_score")])
def test_an_update_is_that_of_pytorch(name, part):
    """From networks that all differ; examples of a batch are generated at different times."""
    family, (sizes, words) = FAMILIES[name], SIZES[name]
    config, networks = recipe(family), random_networks(family, sizes, 0.2)
    ours, theirs = Ours(family, networks, config, SHAPE), Peer(family, networks, config)
    text = torch.randn(BATCH, words, WIDTH)
    told = Condition(jnp.array(text.numpy()), jnp.ones((BATCH, words), bool))
    draws = ours.draws(part, jax.random.key(1), BATCH)
    assert len(set(draws.index.tolist())) > 1
    found = differences(part, ours, theirs, told, text, jax.random.key(1))
    assert found["loss"] < 1e-5
    assert found["gradient"] < 1e-4
    assert found["update"] < 1e-2  # Adam's first one is +-1 for all gradients, however small
    assert found["average"] < 1e-5
