import numpy as np
import pytest

from dollar_jax.data.shapes import CAPTIONS
from dollar_jax.data.text import load_tokenizer, tokenize, write_word_tokenizer
from dollar_jax.errors import UserError

PAD, END, UNKNOWN = 0, 1, 2  # as in T5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_word_tokenizer(folder, CAPTIONS)
    return load_tokenizer(folder)


def test_captions_come_back(tokenizer):
    tokens, mask = tokenize(tokenizer, CAPTIONS, 6)
    assert tokens.shape == mask.shape == (60, 6)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
    assert mask.all()
    assert (tokens[:, -1] == END).all()
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in tokens] == list(CAPTIONS)
    assert len(np.unique(tokens, axis=0)) == 60


def test_vocabulary_is_the_words_of_the_captions(tokenizer):
    assert len(tokenizer) == 3 + len({word for caption in CAPTIONS for word in caption.split()})
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [PAD, END, UNKNOWN]


def test_padding_is_masked(tokenizer):
    tokens, mask = tokenize(tokenizer, ["a red ring"], 6)
    assert mask.tolist() == [[True] * 4 + [False] * 2]
    assert tokens[0, 3:].tolist() == [END, PAD, PAD]


def test_the_empty_caption_is_an_end_alone(tokenizer):
    tokens, mask = tokenize(tokenizer, [""], 4)
    assert tokens.tolist() == [[END, PAD, PAD, PAD]]
    assert mask.tolist() == [[True, False, False, False]]


def test_long_captions_are_cut_before_the_end(tokenizer):
    tokens, mask = tokenize(tokenizer, ["a red ring moving left moving left"], 4)
    assert tokenizer.decode(tokens[0, :3]) == "a red ring"
    assert tokens[0, 3] == END
    assert mask.all()


def test_unknown_words(tokenizer):
    assert tokenize(tokenizer, ["purple"], 2)[0].tolist() == [[UNKNOWN, END]]


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
