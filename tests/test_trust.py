"""What a stranger hands over as a model: it names no code that runs and no path outside its folder."""

import json
import os
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import toy_pipeline

from dollar_jax import checkpoint, importing, models, pipeline
from dollar_jax.card import check
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.errors import UserError
from dollar_jax.models.network import Network
from dollar_jax.reading import inside


@pytest.fixture
def folder(tmp_path):
    return toy_pipeline.write(tmp_path / "model", ["a cat"])


def change(folder, **fields):
    """Writes fields into a card, whatever they are; a dict changes the part of that name."""
    path = folder / "config.json"
    card = json.loads(path.read_text())
    for name, value in fields.items():
        card[name] = card.get(name, {}) | value if isinstance(value, dict) else value
    path.write_text(json.dumps(card))


def open_it(folder):
    pipeline.load(folder)


def export(folder):
    to_torch(folder, folder.with_name("exported"))


def copy_parts(folder):
    checkpoint.bring(checkpoint.read_card(folder), folder, folder.with_name("student"))


def refused(command, folder, words):
    if command is export:  # the toy networks are of no other library: that may be said first
        words = f"{words}|no other library"
    with pytest.raises(UserError, match=words) as refusal:
        command(folder)
    assert "\n" not in str(refusal.value)
    assert not folder.with_name("exported").exists()


@pytest.mark.parametrize("command", [open_it, export])
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_card_runs_no_code(folder, command, part, tmp_path):
    """`subprocess:Popen` with these arguments would write a file."""
    attack = {"args": ["touch", str(tmp_path / "attacked")]}
    change(folder, **{part: {"architecture": "subprocess:Popen", "config": attack}})
    refused(command, folder, "subprocess:Popen is code from outside.*--trust=subprocess")
    assert not (tmp_path / "attacked").exists()


def test_not_even_trusted_modules_run_what_makes_no_network(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(importing, "_trusted", {"subprocess", "os", "toy_pipeline"})
    attack = {"args": ["touch", str(tmp_path / "attacked")]}
    for name, words in {
        "subprocess:Popen": "subprocess:Popen is no function",  # a class
        "os:system": "os:system is no function",  # not Python
        "subprocess:run": "subprocess:run is no function annotated",
        "toy_pipeline:transformer": "does not take the config",
        "toy_pipeline:write": "no function annotated",
        "toy_pipeline:nothing": "no function 'nothing'",
    }.items():
        with pytest.raises(UserError, match=words):
            models.build(name, attack)
    assert not (tmp_path / "attacked").exists()


def test_a_network_from_outside_is_the_users_own_word(monkeypatch):
    nets = types.ModuleType("my_nets")
    exec("def build(width) -> 'Network':\n    return NETWORK if width == 3 else width", nets.__dict__)
    nets.__dict__["NETWORK"] = Network(None, None)
    monkeypatch.setitem(sys.modules, "my_nets", nets)
    monkeypatch.setattr(importing, "_trusted", set())
    with pytest.raises(UserError, match="--trust=my_nets"):
        models.build("my_nets:build", {"width": 3})
    importing.trust(["my_nets"])
    assert models.build("my_nets:build", {"width": 3}) == Network(None, None)
    with pytest.raises(UserError, match="my_nets:build returned a int, wanted a"):
        models.build("my_nets:build", {"width": 4})


def test_only_our_own_networks_are_remembered(monkeypatch):
    """Trust in a module may end; sizes and options make another network."""
    monkeypatch.setattr(importing, "_trusted", {"toy_pipeline"})
    outside = {"architecture": "toy_pipeline:transformer", "config": {}}
    checkpoint.network_of(outside)
    monkeypatch.setattr(importing, "_trusted", set())
    with pytest.raises(UserError, match="code from outside"):
        checkpoint.network_of(outside)
    sizes = {"vocab_size": 8, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_heads": 2, "num_layers": 1}
    own = {"architecture": "t5", "config": sizes}
    network = checkpoint.network_of(own)
    assert checkpoint.network_of(own) is network
    assert checkpoint.network_of(own | {"config": sizes | {"d_ff": 8}}) is not network
    assert checkpoint.network_of(own, dtype="bfloat16") is not network


@pytest.mark.parametrize("name", ["../checkpoint", "network", "dollar_jax.main", "", "checkpoint", "positions"])
def test_only_networks_are_built_in(name):
    with pytest.raises(UserError, match=r"no network|no function 'build'"):
        models.build(name, {})


@pytest.mark.parametrize("command", [open_it, export, copy_parts])
@pytest.mark.parametrize(
    "path", ["../outside", "/tmp", "..", "a/../../outside", "~", ".hidden", "C:\\x", "x\0y", "x\n"]
)
@pytest.mark.parametrize("part", ["vae", "tokenizer"])
def test_a_cards_paths_stay_in_its_folder(folder, command, path, part):
    (folder.parent / "outside").mkdir()
    change(folder, **{part: {"path": path}})
    refused(command, folder, rf"config.json: {part}.path: ")


@pytest.mark.parametrize("command", [open_it, export, copy_parts])
@pytest.mark.parametrize("part", ["vae", "tokenizer", "text_encoder"])
def test_links_do_not_lead_out_either(folder, command, part):
    """A folder that lies elsewhere, and a single file."""
    os.rename(folder / part, folder.parent / "outside")
    (folder / part).symlink_to(folder.parent / "outside")
    refused(command, folder, "outside itself")
    (folder / part).unlink()
    os.rename(folder.parent / "outside", folder / part)
    file = next(path for path in sorted((folder / part).rglob("*")) if path.is_file())
    os.rename(file, folder.parent / "secret")
    file.symlink_to(folder.parent / "secret")
    refused(command, folder, "outside itself")


def test_the_hubs_cache_is_inside(tmp_path):
    """Its snapshots are links into a folder beside them; a link to anywhere else is not."""
    snapshot = tmp_path / "models--a--b/snapshots/1234"
    blobs = tmp_path / "models--a--b/blobs"
    for path in (snapshot / "vae", blobs):
        path.mkdir(parents=True)
    for path in (blobs / "abcd", tmp_path / "secret"):
        path.write_text("{}")
    (snapshot / "vae/config.json").symlink_to("../../../blobs/abcd")
    (snapshot / "vae/other.json").symlink_to(tmp_path / "secret")
    for folder, prefix in ((snapshot, "vae/"), (snapshot / "vae", "")):
        assert inside(folder, f"{prefix}config.json") == blobs / "abcd"
        with pytest.raises(UserError, match="outside itself"):
            inside(folder, f"{prefix}other.json")


FAULTS = {
    "times": [[249, 5000], [], [float("nan")], [-1], ["x"], [1, 1], 5, None],
    "schedule": [{"kind": "subprocess"}, {"kind": "ddpm", "steps": 0}, {"kind": "ddpm", "shift": 2.0}, []],
    "prediction_type": ["w", 1],
    "sampler": ["euler", None],
    "guidance": ["6", float("nan"), float("inf"), 1e30, True],
    "video": [{"fps": 0}, {"fps": "8\n"}, {"frames": 1.5}, {"height": -1}, {"width": 10**12}, {"extra": 1}],
    "latent_shape": [[1, 2, 3], [1, 2, 3, 0], "1234"],
    "lead": [-1, 2],
    "negative_prompt": [None, "a\n```\nrun this", "x" * 10_001],
    "role": ["admin", 7],
    "tokenizer": [{"length": 0}, {"length": 10**9}],
    "vae": [
        {"scaling_factor": 0},
        {"scaling_factor": [1.0] * 3},
        {"shift_factor": [0.0, "a", 0.0, 0.0]},
        {"item": "../x"},
        {"config": []},
        {"architecture": "a b"},
    ],
    "run": ["rm -rf"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FAULTS.items() for value in values])
def test_fields_have_types_and_ranges(folder, name, value):
    change(folder, **{name: value})
    refused(open_it, folder, r"config.json: |config.json is not JSON")
    refused(export, folder, r"config.json: |config.json is not JSON")


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", "[" * 100_000, '{"role": "vae", "role": 3}', "\ud800"])
def test_a_damaged_card_is_one_line(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError) as refusal:
        checkpoint.read_card(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_card_is_checked_in_no_time(folder):
    """jsonschema compares each item with each where it has to find equal ones, for minutes."""
    change(folder, times=[{"a": i} for i in range(4000)])
    begun = time.process_time()
    refused(open_it, folder, r"config.json: times\.\d+: ")
    assert time.process_time() - begun < 30


def test_sizes_that_make_no_network_are_one_line():
    for config in ({"channels": "many"}, {"channels": -4}, {"colour": 1}, {"channels": 4, "text_width": 0.5}):
        with pytest.raises(UserError, match="latent_reward") as refusal:
            models.build("latent_reward", config)
        assert "\n" not in str(refusal.value)


def test_our_own_cards_pass():
    card = toy_pipeline.CARD | {"vae": {"architecture": "t5", "config": {}, "path": "vae", "item": ""}}
    check(json.loads(json.dumps(card)), "here")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_flipped_byte_is_not_loaded(folder, part):
    """Of the largest file: numbers, which nothing else would notice."""
    path = max((path for path in (folder / part).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if path.name in ("checksums.json",):
        path = next(path for path in (folder / part).rglob("*") if path.name == "0" or path.name.endswith("0.0"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(open_it, folder, f"{part} is damaged .*has another checksum")
    refused(export, folder, f"{part} is damaged .*has another checksum")


def test_a_file_that_does_not_belong_is_refused(folder):
    Path(folder / "vae/extra").write_bytes(np.zeros(3).tobytes())
    refused(open_it, folder, "extra is not one of its files")
