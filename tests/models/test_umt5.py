"""umT5 and the cleaning of captions beside transformers' UMT5EncoderModel in diffusers' WanPipeline."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stock
import torch
import toy_pipeline
from compare import relative
from diffusers.pipelines.wan.pipeline_wan import WanPipeline, prompt_clean
from restored import restore
from transformers import UMT5Config, UMT5EncoderModel

from dollar_jax import card
from dollar_jax.convert import umt5 as keys
from dollar_jax.convert.tables import convert
from dollar_jax.data.text import clean_caption, load_tokenizer, tokenize
from dollar_jax.errors import UserError
from dollar_jax.models import umt5

SMALL = {
    "vocab_size": 80,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 3,
    "num_heads": 2,  # d_kv times heads is not d_model
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "layer_norm_epsilon": 1e-3,
}
LENGTH = 13
CAPTIONS = [
    "a cat &amp;lt;asleep&amp;gt;\n\n on a piano, a red ring moving left",  # cut off
    "a red\u00a0 sea",
    "Ã©Ã© a ring",
    "",
]
NASTY = [
    *CAPTIONS,
    "It\u2019s \u201ccaf\u00c3\u00a9\u201d",
    "a < b &amp;lt; c &amp;amp;lt; d",  # ftfy leaves entities beside a bracket
    "&lt;b&gt;bold&lt;/b&gt; &nbsp; &#133; &#x1c; &unknown;",
    "\ta\x00b\x1b[31mred\x1f\x85end\u2028next\u3000wide ",
    "\ufb01ne \uff37\uff49\uff44\uff45 \uff8a\uff9d\uff76\uff78 \u00bd \u00e9 e\u0301",
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001",
    "\ufeffbom \ud7ff \U0001f600 &#128512;",
]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Wan's text encoder with random weights, ours with the same, and a tokenizer for both."""
    folder = tmp_path_factory.mktemp("umt5") / "tokenizer"
    stock.write_tokenizer(folder)
    torch.manual_seed(0)
    theirs = UMT5EncoderModel(UMT5Config(**SMALL, feed_forward_proj="gated-gelu")).eval()
    for parameter in theirs.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network = umt5.build(**keys.config(theirs.config.to_dict()))
    weights = {key: value.numpy() for key, value in theirs.state_dict().items()}
    target = jax.eval_shape(network.init, jax.random.key(0))
    return SimpleNamespace(
        theirs=theirs,
        weights=weights,
        target=target,
        params=convert(keys.table({}), weights, target),
        apply=jax.jit(network.apply),
        tokenizer=load_tokenizer(folder),
    )


def test_text_is_that_of_wans_pipeline(case):
    pipeline = SimpleNamespace(tokenizer=case.tokenizer, text_encoder=case.theirs, _execution_device="cpu")
    wanted = WanPipeline._get_t5_prompt_embeds(pipeline, CAPTIONS, max_sequence_length=LENGTH)
    tokens, mask = tokenize(case.tokenizer, CAPTIONS, LENGTH, clean=True)
    assert mask.sum(1)[0] == LENGTH > mask.sum(1)[1] > mask.sum(1)[3] == 1
    text = case.apply(case.params, tokens, mask)
    assert relative(text.embedding, wanted) < 1e-5
    np.testing.assert_array_equal(text.embedding[~mask], 0)
    np.testing.assert_array_equal(text.mask, mask)
    assert text.embedding.dtype == jnp.float32


def test_padding_is_not_seen(case):
    """Other tokens behind the mask change nothing, whichever they are."""
    tokens, mask = tokenize(case.tokenizer, CAPTIONS, LENGTH, clean=True)
    before, after = (case.apply(case.params, x, mask).embedding for x in (tokens, np.where(mask, tokens, 7)))
    np.testing.assert_array_equal(before, after)


def test_each_block_has_its_own_distances(case):
    swapped = {**case.params, "distance_bias": {"embedding": case.params["distance_bias"]["embedding"][::-1]}}
    tokens, mask = tokenize(case.tokenizer, CAPTIONS[:1], LENGTH)
    before, after = (case.apply(params, tokens, mask).embedding for params in (case.params, swapped))
    assert relative(before, after) > 1e-2


def test_there_and_back(case):
    restored = restore(keys.table({}), case.params)
    del case.weights["encoder.embed_tokens.weight"]  # the same as `shared`, and not in the public file
    assert restored.keys() == case.weights.keys()
    for key, value in case.weights.items():
        np.testing.assert_array_equal(restored[key], value)
    described = keys.their_config(SMALL)
    assert UMT5Config(**described).to_dict().items() >= SMALL.items()
    assert described["model_type"] == "umt5"


@pytest.mark.parametrize("key", ["shared.weight", "encoder.embed_tokens.weight"])
def test_a_lost_embedding_is_refused(case, key):
    embedding = case.weights["shared.weight"]
    with pytest.raises(UserError, match=rf"{key} is all zeros: whoever wrote this file had lost") as fault:
        convert(keys.table({}), case.weights | {key: np.zeros_like(embedding)}, case.target)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("caption", NASTY)
def test_cleaning_is_that_of_wans_pipeline(caption):
    assert clean_caption(caption) == prompt_clean(caption)


def test_cleaned_captions_have_no_entities_and_single_spaces(case):
    assert clean_caption(" cafÃ©  &amp;lt;3\n") == "café <3"
    dirty, plain = (tokenize(case.tokenizer, ["a &amp;lt;red ring"], LENGTH, clean)[0] for clean in (False, True))
    assert (plain == tokenize(case.tokenizer, ["a <red ring"], LENGTH)[0]).all()
    assert (dirty != plain).any()


def test_a_card_says_whether_captions_are_cleaned():
    tokenizer = toy_pipeline.CARD["tokenizer"]
    plain, cleans = (toy_pipeline.make(tokenizer=tokenizer | {"clean": clean}) for clean in (False, True))
    dirty, expected = plain.encode_text(["a &lt;  b", "a < b"]).embedding
    assert np.abs(dirty - expected).max() > 0
    np.testing.assert_array_equal(cleans.encode_text(["a &lt;  b"]).embedding[0], expected)
    np.testing.assert_array_equal(toy_pipeline.make().encode_text(["a &lt;  b"]).embedding[0], dirty)
    card.check({"role": "teacher", "tokenizer": tokenizer | {"clean": True}}, "here")
    with pytest.raises(UserError, match=r"here: tokenizer.clean: 'yes' is not of type 'boolean'"):
        card.check({"role": "teacher", "tokenizer": tokenizer | {"clean": "yes"}}, "here")
