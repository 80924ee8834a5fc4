"""The encoder of T5 v1.1 in transformers: its config.json and its keys in our names. `convert.umt5` shares them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dollar_jax.convert.tables import Rule, linear_rules, norm_rules, same
from dollar_jax.errors import UserError
from dollar_jax.models.t5 import Config

OURS = ("attend_padding", "zero_padding", "own_biases", "distance_std")  # fields that T5Config does not have
# The first versions of transformers 5 read umT5 with zeros for its embedding, and wrote them too (transformers#43992).
ZEROS = "whoever wrote this file had lost the embedding of tokens; get the original"


def table(config: Mapping[str, Any]) -> list[Rule]:
    """The rules, the same for every config."""
    del config
    return rules("0")


def rules(bias: str) -> list[Rule]:
    """The rules of an encoder, in which the blocks `bias` have numbers for distances: the first, or `{layer}`."""
    return [
        # One matrix under both names; `shared` is the one that transformers writes.
        Rule("shared.weight", "embed/embedding", same, ZEROS),
        Rule("encoder.embed_tokens.weight", "embed/embedding", same, ZEROS),
        Rule(
            f"encoder.block.{bias}.layer.0.SelfAttention.relative_attention_bias.weight",
            "distance_bias/embedding",
            same,
        ),
        *linear_rules(
            {
                "encoder.block.{layer}.layer.0.SelfAttention.q": "blocks/query",
                "encoder.block.{layer}.layer.0.SelfAttention.k": "blocks/key",
                "encoder.block.{layer}.layer.0.SelfAttention.v": "blocks/value",
                "encoder.block.{layer}.layer.0.SelfAttention.o": "blocks/project",
                "encoder.block.{layer}.layer.1.DenseReluDense.wi_0": "blocks/gate",
                "encoder.block.{layer}.layer.1.DenseReluDense.wi_1": "blocks/expand",
                "encoder.block.{layer}.layer.1.DenseReluDense.wo": "blocks/contract",
            }
        ),
        *norm_rules(
            {
                "encoder.block.{layer}.layer.0.layer_norm": "blocks/attention_norm",
                "encoder.block.{layer}.layer.1.layer_norm": "blocks/mlp_norm",
                "encoder.final_layer_norm": "norm",
            }
        ),
    ]


def config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `models.t5.build`, from the content of transformers' config.json.

    The rest of that file describes the decoder, the tokenizer and dropout.

    Raises:
      UserError: a size is missing, or the encoder is not the gated one of v1.1.
    """
    names = [field.name for field in dataclasses.fields(Config) if field.name not in OURS]
    if missing := [name for name in names if name not in theirs]:
        raise UserError(f"the text encoder's config.json lacks {', '.join(missing)}: is it a T5 encoder?")
    kind = theirs.get("feed_forward_proj")
    if kind != "gated-gelu":
        raise UserError(
            f"the text encoder's config.json has feed_forward_proj = {kind!r}: only 'gated-gelu' is supported"
        )
    return {name: theirs[name] for name in names}


def their_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config`.

    Raises:
      UserError: T5 has no such encoder.
    """
    if config.get("own_biases"):
        raise UserError("the text encoder has own_biases, which T5 does not have: name the network umt5")
    sizes = {name: value for name, value in dataclasses.asdict(Config(**config)).items() if name not in OURS}
    return {"model_type": "t5", "feed_forward_proj": "gated-gelu"} | sizes
