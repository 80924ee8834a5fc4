"""Captions as tokens, by a Hugging Face tokenizer: that of T5 or CLIP, or the small one of the shapes world.

A tokenizer folder may be a stranger's. transformers would run the code that one names and open its files wherever they
are, so that what it may see is checked first. It takes seconds to import, hence inside functions.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from dollar_jax.errors import UserError
from dollar_jax.reading import inside, read_json

# Only tokenizers are wanted of it: that there is no PyTorch is no news, and faults are said once, here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
FILES = (CONFIG, SPECIAL, "tokenizer.json", "added_tokens.json", "spiece.model", "tokenizer.model", "vocab.json")
FILES += ("merges.txt", "vocab.txt")
CLASSES = ("T5Tokenizer", "T5TokenizerFast", "CLIPTokenizer", "CLIPTokenizerFast")
CLASSES += ("PreTrainedTokenizerFast", "TokenizersBackend")  # both are what tokenizer.json says
# Words and lists under other names than these and *_token or *_tokens could be files or code, vocab for one.
NAMES = ("tokenizer_class", "name_or_path", "special_tokens_map_file", "added_tokens_decoder", "chat_template")
NAMES += ("errors", "backend", "padding_side", "truncation_side", "truncation_strategy", "model_input_names")
NAMES += ("processor_class",)


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
    """The tokenizer saved in a folder; nothing is downloaded, and no code of the folder's is run.

    Raises:
      UserError: there is none, it is damaged, or it names code or files outside.
    """
    import transformers

    # transformers looks for files of many names, some of which lead to others: a copy has the known ones alone.
    with tempfile.TemporaryDirectory() as copy:
        copy_tokenizer(folder, copy)
        kind = getattr(transformers, read_json(Path(copy) / CONFIG)["tokenizer_class"])
        try:
            tokenizer = kind.from_pretrained(copy, local_files_only=True, trust_remote_code=False)
            tokenize(tokenizer, [""], 8)
        except Exception as error:  # each of its readers has classes of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(f"{folder}: the tokenizer is damaged, copy it again ({reason})") from error
    return tokenizer


def copy_tokenizer(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies the known files of the tokenizer in folder `source` to folder `target`, links as files.

    Raises:
      UserError: there is no tokenizer, or it names code or files outside; then nothing is copied.
    """
    source, target = Path(source), Path(target)
    files = {name: inside(source, name) for name in FILES if (source / name).is_file()}
    if CONFIG not in files:
        raise UserError(f"{source}: no tokenizer here ({CONFIG} is missing)")
    for name in (CONFIG, SPECIAL):
        if name in files:
            _require_harmless(read_json(files[name]), source / name)
    kind = read_json(files[CONFIG]).get("tokenizer_class")
    if kind not in CLASSES:
        raise UserError(f"{source / CONFIG}: its tokenizer_class {kind!r:.100} is none of {', '.join(CLASSES)}")
    target.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        shutil.copyfile(path, target / name)


def _require_harmless(config: Mapping[str, Any], path: Path) -> None:
    """Raises UserError if a key may name code or a file: each becomes an argument of the tokenizer's class."""
    for key, value in config.items():
        known = key in NAMES or key.endswith(("_token", "_tokens"))
        if value and isinstance(value, str | list | dict) and not known:
            raise UserError(f"{path} has {key!r:.100}, which may name code or a file: remove it to use the tokenizer")


def tokenize(
    tokenizer, captions: Sequence[str], length: int
) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """Tokens of the captions and which of them are real, padded or cut to `length`.

    The empty caption, just an end of sentence, is the null caption of guidance.
    """
    encoded = tokenizer(list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return encoded["input_ids"].astype(np.int32), encoded["attention_mask"].astype(bool)
