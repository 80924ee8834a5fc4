"""Comparisons of folders in the public format."""

from pathlib import Path

import jax
import numpy as np
from compare import relative

from dollar_jax import pipeline
from dollar_jax.convert.tensors import open_folder


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """The same keys, dtypes and bits."""
    ours, theirs = open_folder(ours), open_folder(theirs)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert ours[key].dtype == theirs[key].dtype, key
        assert ours[key].tobytes() == theirs[key].tobytes(), key


def assert_half_the_memory_for_the_same_bits(folder: Path, captions: list[str]) -> None:
    """In bfloat16, the large matrices of a model are in memory as what its networks cast them to; all else as stored,
    the VAE too, and latents are float32.
    """
    wide, narrow = pipeline.load(folder), pipeline.load(folder, dtype="bfloat16")
    made = {}
    for name, stored in (("narrow", narrow.networks), ("cast at use", wide.networks)):
        networks = {part: (network, stored[part][1]) for part, (network, _) in narrow.networks.items()}
        model = pipeline.Pipeline(narrow.card, networks, narrow.tokenizer)
        noise, keys = pipeline.draw_noise(model.card, 0, len(captions), 1)
        told = model.encode_text(captions)
        _, params = networks["transformer"]
        latents = np.asarray(model.sampler(params, noise, told, None, keys, model.times(2), 0.0))
        assert latents.dtype == told.embedding.dtype == np.float32
        made[name] = told.embedding, latents
    for one, other in zip(*made.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert relative(made["narrow"][0], wide.encode_text(captions).embedding) > 0
    for part in narrow.networks:
        leaves = jax.tree.leaves(narrow.networks[part][1])
        if part == "vae":
            assert [x.dtype for x in leaves] == [x.dtype for x in jax.tree.leaves(wide.networks[part][1])]
        else:
            assert sum(x.size for x in leaves if x.dtype == "bfloat16") > 0.3 * sum(x.size for x in leaves), part
