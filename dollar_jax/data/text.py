"""Captions as tokens, by any Hugging Face tokenizer: the one of T5, or the small one of the shapes world.

transformers takes seconds to import, hence inside functions.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32

from dollar_jax.importing import UserError

# Only tokenizers are wanted of it: that there is no PyTorch is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def write_word_tokenizer(folder: str | os.PathLike, captions: Iterable[str]) -> None:
    """Writes a tokenizer whose vocabulary is the words of the captions, behind T5's <pad>, </s> and <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = sorted({word for caption in captions for word in caption.split()})
    vocabulary = {word: index for index, word in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = special["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def load_tokenizer(folder: str | os.PathLike):
    """The tokenizer saved in a folder; nothing is downloaded.

    Raises:
      UserError: there is none.
    """
    from transformers import AutoTokenizer

    if not (Path(folder) / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: no tokenizer here (tokenizer_config.json is missing)")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def tokenize(
    tokenizer, captions: Sequence[str], length: int
) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """Tokens of the captions and which of them are real, padded or cut to `length`.

    The empty caption, just an end of sentence, is the null caption of guidance.
    """
    encoded = tokenizer(list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return encoded["input_ids"].astype(np.int32), encoded["attention_mask"].astype(bool)
