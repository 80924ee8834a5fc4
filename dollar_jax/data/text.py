"""Turns captions into tokens by a Hugging Face tokenizer: T5's, CLIP's, or the small tokenizer of the shapes world.

A tokenizer folder may come from outside. transformers would run code and open files that the folder names, so the
folder is checked first, and transformers sees only a copy of the known files. transformers takes seconds to import, so
functions import it.
"""

import html
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from dollar_jax.errors import UserError, first_line
from dollar_jax.reading import inside, read_json

# Only tokenizers of transformers are used: its warning about missing PyTorch is no news, and faults are reported here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
FILES = (CONFIG, SPECIAL, "tokenizer.json", "added_tokens.json", "spiece.model", "tokenizer.model", "vocab.json")
FILES += ("merges.txt", "vocab.txt")
GROWTH = 1000  # of a caption before the model; with the tokenizers of T5 and CLIP 32
CLASSES = ("T5Tokenizer", "T5TokenizerFast", "CLIPTokenizer", "CLIPTokenizerFast")
CLASSES += ("PreTrainedTokenizerFast", "TokenizersBackend")  # both follow tokenizer.json
# Keys that may have a string, list or dict as value, besides *_token and *_tokens. Under any other key, for instance
# vocab, it could name a file or code.
NAMES = ("tokenizer_class", "name_or_path", "special_tokens_map_file", "added_tokens_decoder", "chat_template")
NAMES += ("errors", "backend", "padding_side", "truncation_side", "truncation_strategy", "model_input_names")
NAMES += ("processor_class",)


def write_word_tokenizer(folder: str | os.PathLike, captions: Iterable[str]) -> None:
    """Writes a tokenizer whose vocabulary is T5's <pad>, </s> and <unk>, then the words of the captions."""
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
    """Loads the tokenizer in a folder. Nothing is downloaded, and no code in the folder is run.

    Raises:
      UserError: the tokenizer is missing or damaged, or names code or files outside the folder.
    """
    import transformers

    # transformers looks for files with many names, and some of them name other files: the copy has only known files.
    with tempfile.TemporaryDirectory() as copy:
        copy_tokenizer(folder, copy)
        kind = getattr(transformers, read_json(Path(copy) / CONFIG)["tokenizer_class"])
        try:
            tokenizer = kind.from_pretrained(copy, local_files_only=True, trust_remote_code=False)
            tokenize(tokenizer, [""], 8)
        except Exception as error:  # each reader in transformers raises its own exceptions
            raise UserError(f"{folder}: the tokenizer is damaged, copy it again ({first_line(error)})") from error
    return tokenizer


def copy_tokenizer(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies the known files of the tokenizer in folder `source` to folder `target`; links become files.

    Raises:
      UserError: the tokenizer is missing, or names code or files outside the folder; then nothing is copied.
    """
    source, target = Path(source), Path(target)
    files = {name: inside(source, name) for name in FILES if (source / name).is_file()}
    if CONFIG not in files:
        raise UserError(f"{source}: no tokenizer here ({CONFIG} is missing)")
    for name in (CONFIG, SPECIAL):
        if name in files:
            _require_harmless(read_json(files[name]), source / name)
    if "tokenizer.json" in files:
        _require_small_growth(read_json(files["tokenizer.json"]), source / "tokenizer.json")
    kind = read_json(files[CONFIG]).get("tokenizer_class")
    if kind not in CLASSES:
        raise UserError(f"{source / CONFIG}: its tokenizer_class {kind!r:.100} is none of {', '.join(CLASSES)}")
    target.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        shutil.copyfile(path, target / name)


def _require_harmless(config: Mapping[str, Any], path: Path) -> None:
    """Raises UserError if a value may name code or a file: each becomes an argument of the tokenizer's class."""
    for key, value in config.items():
        known = key in NAMES or key.endswith(("_token", "_tokens"))
        if value and isinstance(value, str | list | dict) and not known:
            raise UserError(f"{path} has {key!r:.100}, which may name code or a file: remove it to use the tokenizer")


def _require_small_growth(tokenizer: Mapping[str, Any], path: Path) -> None:
    """Raises UserError if the steps before the model could make a caption fill the memory: each multiplies it."""
    growth = math.prod(_growth(tokenizer.get(name)) for name in ("normalizer", "pre_tokenizer"))
    if growth > GROWTH:
        raise UserError(f"{path} could make a caption {growth:.3g} times as long: use a plain tokenizer of the model")


def _growth(step: Any) -> int:
    """How many times as long one step of a tokenizer.json, or a sequence of steps, makes a text, about."""
    if not isinstance(step, dict):
        return 1  # none, or refused by transformers
    steps = step.get("normalizers", step.get("pretokenizers"))
    if isinstance(steps, list):
        return math.prod(map(_growth, steps))
    words = (step.get(name) for name in ("content", "prepend"))
    return max([2, *(1 + len(word) for word in words if isinstance(word, str))])


def clean_caption(caption: str) -> str:
    """A caption without what the web does to text: broken encodings, HTML's entities (`&amp;lt;`), runs of whitespace.

    The same as Wan's pipeline does, so that its transformer gets the text that it was trained with.
    """
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(caption))).split())


def tokenize(
    tokenizer, captions: Sequence[str], length: int, clean: bool = False
) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """Returns (tokens, mask) of the captions, padded or truncated to `length`; the mask is False at padding.

    The empty caption, only an end-of-sentence token, is the unconditional input of guidance.

    Args:
      clean: whether captions pass `clean_caption` first.
    """
    captions = [clean_caption(caption) for caption in captions] if clean else captions
    encoded = tokenizer(list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return encoded["input_ids"].astype(np.int32), encoded["attention_mask"].astype(bool)
