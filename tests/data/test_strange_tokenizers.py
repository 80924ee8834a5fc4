"""Tokenizer folders of strangers: nothing in them runs or leads outside, and what is damaged is one line."""

import json
import os

import pytest
import stock

from dollar_jax.data.text import copy_tokenizer, load_tokenizer, tokenize, write_word_tokenizer
from dollar_jax.errors import UserError

CONFIG = "tokenizer_config.json"
CODE = """
import pathlib
pathlib.Path("attacked").touch()
from transformers import PreTrainedTokenizerFast
class Own(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tokenizer, and another one outside whose words are a secret."""
    monkeypatch.chdir(tmp_path)
    write_word_tokenizer(tmp_path / "outside", ["secret words"])
    write_word_tokenizer(tmp_path / "mine", ["a red ring"])
    return tmp_path / "mine"


@pytest.fixture
def pieces(tmp_path):
    """T5's format, without a tokenizer.json."""
    stock.write_tokenizer(tmp_path / "pieces")
    return tmp_path / "pieces"


def change(path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def own_code(folder):
    (folder / "own.py").write_text(CODE)
    change(folder / CONFIG, auto_map={"AutoTokenizer": [None, "own.Own"]}, tokenizer_class="Own")


def own_config(folder):
    """Another model's class as the tokenizer's, whose code the model's config names."""
    (folder / "own.py").write_text(CODE)
    change(folder / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
    change(folder / CONFIG, tokenizer_class="AutoModel")


def link_out(name):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder.parent / "outside" / name)

    return damage


def replace(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def drop(key):
    def damage(folder):
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({name: x for name, x in content.items() if name != key}))

    return damage


def grow(place, steps, step):
    """Ten equal steps, each in the place of a sequence."""
    step |= {"pattern": {"String": "a"}} if "content" in step else {}
    nested = {"type": "Sequence", steps: [{"type": "Sequence", steps: [step] * 5}] * 2}
    return lambda folder: change(folder / "tokenizer.json", **{place: nested})


FAULTS = {
    "code": (own_code, "has 'auto_map', which may name code or a file"),
    "code of a config": (own_config, "tokenizer_class 'AutoModel' is none of"),
    "unknown class": (lambda f: change(f / CONFIG, tokenizer_class="pipeline"), "'pipeline' is none of"),
    "no word for a class": (lambda f: change(f / CONFIG, tokenizer_class=["Own"]), "tokenizer_class .* is none of"),
    "no class": (drop("tokenizer_class"), "tokenizer_class None is none of"),
    "file": (lambda f: change(f / CONFIG, tokenizer_file="../outside/tokenizer.json"), "has 'tokenizer_file'"),
    "files": (lambda f: change(f / CONFIG, fast_tokenizer_files=["/x/tokenizer.5.0.json"]), "fast_tokenizer_files"),
    "vocabulary": (lambda f: change(f / CONFIG, vocab="/etc/passwd"), "has 'vocab'"),
    "arguments": (lambda f: change(f / CONFIG, init_inputs=["/etc/passwd"]), "has 'init_inputs'"),
    "file of special tokens": (
        lambda f: change(f / "special_tokens_map.json", tokenizer_file="../outside/tokenizer.json"),
        "special_tokens_map.json has 'tokenizer_file'",
    ),
    "link": (link_out("tokenizer.json"), "points to 'tokenizer.json', outside itself"),
    "link to a config": (link_out(CONFIG), f"points to '{CONFIG}', outside itself"),
    "no JSON": (replace(CONFIG, b"{"), f"{CONFIG} is not JSON"),
    "list": (replace(CONFIG, b"[]"), f"{CONFIG} is not a JSON object"),
    "deep JSON": (replace(CONFIG, b"[" * 100_000), f"{CONFIG} is not JSON"),
    "binary": (replace(CONFIG, b"\xff\xfe"), f"{CONFIG} is not JSON"),
    "cut off": (replace("tokenizer.json", b'{"version": "1.0", "mod'), "tokenizer.json is not JSON"),
    "nothing": (lambda f: (f / CONFIG).unlink(), "no tokenizer here"),
    "words that grow": (
        grow("normalizer", "normalizers", {"type": "Replace", "content": "aaaa"}),
        "1.95e.07 times as long",
    ),
    "words that double": (grow("pre_tokenizer", "pretokenizers", {"type": "ByteLevel"}), "1.02e.03 times as long"),
    "a long word": (
        lambda f: change(f / "tokenizer.json", normalizer={"type": "Prepend", "prepend": "a" * 2000}),
        "4e.03 times as long",
    ),
}
DAMAGES = {
    "damaged": (replace("tokenizer.json", b"{}"), "the tokenizer is damaged"),
    "no files": (lambda f: (f / "tokenizer.json").unlink(), "the tokenizer is damaged"),
    "odd tokens": (lambda f: change(f / CONFIG, eos_token=3), "the tokenizer is damaged"),
    "odd side": (lambda f: change(f / CONFIG, padding_side="up"), "the tokenizer is damaged"),
    "no padding": (drop("pad_token"), "the tokenizer is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS | DAMAGES)
def test_refusals_are_one_line(folder, fault, monkeypatch, capfd):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    damage, words = (FAULTS | DAMAGES)[fault]
    damage(folder)
    with pytest.raises(UserError, match=words) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not os.path.exists("attacked")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_refused_is_not_copied(folder, fault, tmp_path):
    damage, words = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError, match=words):
        copy_tokenizer(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("content", [b"", b"no pieces", b"\x0a\xff\xff\xff\xff"])
def test_a_damaged_sentencepiece_model(pieces, content, capfd):
    (pieces / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match="the tokenizer is damaged") as caught:
        load_tokenizer(pieces)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_only_known_files_are_copied_and_seen(folder, tmp_path):
    """A model's whole folder is one of its tokenizer too; its links, code and other folders stay behind."""
    before = tokenize(load_tokenizer(folder), ["a red ring"], 5)[0]
    (folder / "own.py").write_text(CODE)
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    (folder / "additional_chat_templates").mkdir()
    (folder / "tekken.json").symlink_to("/etc/passwd")
    change(folder / "config.json", auto_map={"AutoConfig": "own.Own"})
    copy_tokenizer(folder, tmp_path / "copy")
    assert sorted(os.listdir(tmp_path / "copy")) == ["tokenizer.json", CONFIG]
    for place in (folder, tmp_path / "copy"):
        assert (tokenize(load_tokenizer(place), ["a red ring"], 5)[0] == before).all()


def test_the_cache_of_the_hub_is_a_tokenizer(folder, tmp_path):
    """Its files are links into `blobs`; they are copied as files."""
    before = tokenize(load_tokenizer(folder), ["a red ring"], 4)[0].tolist()
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    (snapshot / "tokenizer").mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / "tokenizer" / path.name).symlink_to(f"../../../blobs/{number}")
    copy_tokenizer(snapshot / "tokenizer", tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").iterdir())
    for place in (snapshot / "tokenizer", tmp_path / "copy"):
        assert tokenize(load_tokenizer(place), ["a red ring"], 4)[0].tolist() == before


EXTRA = [f"<extra_id_{number}>" for number in range(3)]
WAN = {
    "added_tokens_decoder": {"0": {"content": "<pad>", "special": True}},
    "additional_special_tokens": EXTRA,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": True,
    "extra_ids": len(EXTRA),
    "legacy": True,
    "model_max_length": 512,
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
}


def test_keys_of_wans_folder_are_no_fault(pieces):
    before = tokenize(load_tokenizer(pieces), ["a cat asleep on a piano"], 9)[0]
    change(pieces / CONFIG, **WAN)
    tokenizer = load_tokenizer(pieces)
    assert (tokenize(tokenizer, ["a cat asleep on a piano"], 9)[0] == before).all()
    tokenizer.save_pretrained(pieces / "again")  # with a tokenizer.json, as the public folder has too
    change(pieces / "again" / CONFIG, **WAN)
    assert (tokenize(load_tokenizer(pieces / "again"), ["a cat asleep on a piano"], 9)[0] == before).all()


def test_keys_of_public_folders_are_no_fault(pieces):
    """What transformers 4 wrote: the writer's own paths, which transformers does not follow."""
    words = {
        "name_or_path": "google/t5-v1_1-xxl",
        "special_tokens_map_file": "/home/somebody/special_tokens_map.json",
        "sp_model_kwargs": {},
        "model_max_length": 226,
        "tokenizer_file": None,
        "additional_special_tokens": [],
    }
    before = tokenize(load_tokenizer(pieces), ["a cat asleep on a piano"], 9)[0]
    change(pieces / CONFIG, **words)
    assert (tokenize(load_tokenizer(pieces), ["a cat asleep on a piano"], 9)[0] == before).all()
