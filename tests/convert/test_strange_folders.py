"""Folders of weights from strangers: nothing in them runs or leads outside, and what is damaged is one line."""

import json
import os
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import stock
import torch
from safetensors.numpy import load_file, save_file

from dollar_jax.convert.architectures import describe, known, of_folder
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.tensors import open_file, open_folder
from dollar_jax.errors import UserError

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
INDEX = f"{WEIGHTS}.index.json"
TRANSFORMER, VAE, T5, SCHEDULER = (
    f"{name}.json" for name in ("transformer/config", "vae/config", "text_encoder/config", "scheduler/scheduler_config")
)


@pytest.fixture
def source(plain, tmp_path, monkeypatch) -> Path:
    """A pipeline, and the same one outside of it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(plain, tmp_path / "outside")
    return shutil.copytree(plain, tmp_path / "source")


def refused(source: Path, words: str) -> None:
    """In one line, with nothing left behind."""
    before = sorted(Path().iterdir())
    with pytest.raises(UserError, match=words) as caught:
        from_torch(source, Path("ours"))
    assert "\n" not in str(caught.value)
    assert sorted(Path().iterdir()) == before


def change(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_index(folder: Path, places) -> None:
    """The weights in shards, as an index says that they are."""
    (folder / WEIGHTS).rename(folder / "shard.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    "name",
    [
        "../outside/transformer/X",
        "/etc/passwd",
        "more/X",
        "..",
        "",
        5,
        None,
        ["X"],
        "\ud800.bin",
        "shard.pkl",
        "~/a.bin",
    ],
)
def test_shards_are_files_beside_their_index(source, name):
    name = name.replace("X", WEIGHTS) if isinstance(name, str) else name
    write_index(source / "transformer", {"proj_out.weight": name})
    refused(source, f"{INDEX} is no index of weights")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": "x"}', "{", "[" * 9999, "\xff"])
def test_odd_indices(source, content):
    write_index(source / "transformer", {})
    (source / "transformer" / INDEX).write_text(content, encoding="latin-1")
    refused(source, f"{INDEX} is no")


LINKS = [
    "transformer",
    "transformer/config.json",
    f"transformer/{WEIGHTS}",
    "scheduler",
    "model_index.json",
    "tokenizer",
]


@pytest.mark.parametrize("name", [*LINKS, "tokenizer/spiece.model"])
def test_links_that_lead_out(source, name):
    path = source / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(Path("outside", name).resolve())
    refused(source, "outside itself")


def test_links_of_shards_that_lead_out(source):
    write_index(source / "transformer", {"proj_out.weight": "shard.safetensors"})
    (source / "transformer" / "shard.safetensors").unlink()
    (source / "transformer" / "shard.safetensors").symlink_to(Path("outside/transformer", WEIGHTS).resolve())
    refused(source, "outside itself")


def test_links_inside_and_the_cache_of_the_hub(source, tmp_path):
    """Its files are links into `blobs`, and folders may share files."""
    (source / "shared.safetensors").write_bytes((source / "transformer" / WEIGHTS).read_bytes())
    (source / "transformer" / WEIGHTS).unlink()
    (source / "transformer" / WEIGHTS).symlink_to("../shared.safetensors")
    wanted = dict(open_folder(source, "transformer"))
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    (snapshot / "vae").mkdir(parents=True)
    for number, path in enumerate(sorted((source / "vae").iterdir())):
        path.rename(blobs / str(number))
        (snapshot / "vae" / path.name).symlink_to(f"../../../blobs/{number}")
    assert len(wanted) == len(open_folder(tmp_path / "outside" / "transformer"))
    assert from_torch(snapshot / "vae", tmp_path / "ours")["role"] == "vae"


FAULTS = {
    "list": ({TRANSFORMER: "[]"}, "config.json is not a JSON object"),
    "deep": ({TRANSFORMER: '{"a":' * 900 + "0" + "}" * 900}, "config.json is nested too deeply"),
    "deeper": ({TRANSFORMER: '{"a":' * 99_999}, "config.json is not JSON"),
    "NaN": ({VAE: {"norm_eps": float("nan")}}, "NaN is not a finite number"),
    "infinity": ({VAE: '{"norm_eps": 1e999}'}, "1e999 is not a finite number"),
    "digits": ({TRANSFORMER: '{"num_layers": ' + "9" * 5000 + "}"}, "config.json is not JSON"),
    "huge": ({TRANSFORMER: {"num_layers": 10**12}}, "num_layers: 1000000000000 is greater than"),
    "huge, nested": ({TRANSFORMER: {"more": {"a": [10**12]}}}, r"more.a.0: 1000000000000 is greater than"),
    "negative": ({TRANSFORMER: {"num_layers": -2}}, "sizes of its config"),
    "zero": ({TRANSFORMER: {"attention_head_dim": 0}}, "sizes of its config|weights do not fit the network"),
    "string": ({TRANSFORMER: {"num_layers": "2"}}, "transformer"),
    "list of sizes": ({TRANSFORMER: {"in_channels": [4]}}, "transformer"),
    "none": ({TRANSFORMER: {"patch_size": None}}, "transformer"),
    "float": ({TRANSFORMER: {"num_attention_heads": 2.5}}, "transformer"),
    "classes": ({TRANSFORMER: {"_class_name": ["a"]}}, r"describes a \['a'\]"),
    "lines in a class": ({TRANSFORMER: {"_class_name": "a\n\x1b[2J"}}, "_class_name: .* does not match"),
    "lines in a name": ({TRANSFORMER: {"a\n\x1b": 1}}, r"'a\\n\\x1b' does not match"),
    "lines in a name of a size": ({TRANSFORMER: {"a\n": {"b": 1e9}}}, "does not match|'a"),
    "lines in a scheduler": ({SCHEDULER: {"_class_name": "a\nb"}}, "_class_name: .* does not match"),
    "number of architectures": ({T5: {"architectures": 5}}, "describes a None"),
    "words in a size": ({T5: {"d_model": "24"}}, "sizes of its config"),
    "no heads": ({T5: {"num_heads": None}}, "sizes of its config"),
    "block of words": ({VAE: {"block_out_channels": ["8", "8"]}}, "vae"),
    "number of blocks": ({VAE: {"block_out_channels": 8}}, "vae"),
    "groups": ({VAE: {"norm_num_groups": 0}}, "vae"),
    "scale": ({VAE: {"scaling_factor": "0.7"}}, "scaling_factor: '0.7' is not of type"),
    "no scale": ({VAE: {"scaling_factor": None}}, "scaling_factor: None is not of type"),
    "scale of zero": ({VAE: {"scaling_factor": 0}}, "scaling_factor: 0 is less than or equal"),
    "index": ({"model_index.json": '["a"]'}, "model_index.json is not a JSON object"),
    "kind": ({"model_index.json": {"_class_name": ["a\nb"]}}, r"holds a \['a\\nb'\]"),
    "steps": ({SCHEDULER: {"num_train_timesteps": 10**12}}, "num_train_timesteps: 1000000000000 is greater"),
    "words for steps": ({SCHEDULER: {"num_train_timesteps": "1000"}}, "num_train_timesteps: '1000' is not"),
    "few steps": ({SCHEDULER: {"num_train_timesteps": 7}}, "50 steps: the schedule has 7 training times"),
    "noise": ({SCHEDULER: {"beta_end": 12.0}}, "beta_end: 12.0 is greater"),
    "no noise": ({SCHEDULER: {"beta_start": None}}, "beta_start: None is not"),
    "shift": ({SCHEDULER: {"snr_shift_scale": -1}}, "snr_shift_scale: -1 is less"),
    "kinds of noise": ({SCHEDULER: {"beta_schedule": ["linear"]}}, "only 'linear' or"),
    "scheduler": ({SCHEDULER: {"_class_name": 5}}, "the scheduler is a 5"),
    "size of videos": ({TRANSFORMER: {"sample_height": -4}}, "transformer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_odd_descriptions(source, fault):
    changes, words = FAULTS[fault]
    for name, content in changes.items():
        (source / name).write_text(content) if isinstance(content, str) else change(source / name, **content)
    (name,) = changes
    alone = name in (VAE, T5)  # the transformer need not be converted before
    refused(source / Path(name).parent if alone else source, words)


def write_header(path: Path, header: dict | bytes, data: bytes = b"") -> None:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def tensor(dtype="F32", shape=(1,), size=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"x": tensor("F8_E4M3", (4,))}, "'x' as F8_E4M3: only F64, F32"),
        ({"x": tensor("C64", (1,), 8)}, "'x' as C64: only"),
        ({"x": tensor("F33")}, "is damaged"),
        ({"x": tensor(shape=(10**18,))}, "is damaged"),
        ({"x": tensor(shape=(-1,))}, "is damaged"),
        ({"x": tensor(shape=(10**18, 0), size=0)}, "the weights do not fit the network"),
        ({"x\ny\x1b": tensor()}, r"odd name 'x\\ny\\x1b'"),
        ({"x" * 10_000: tensor()}, "odd name"),
        ({}, "the weights do not fit the network"),
        (b'{"x": ', "is damaged"),
        (b"[" * 9999, "is damaged"),
    ],
)
def test_odd_headers(source, header, words):
    size = max((x["data_offsets"][1] for x in header.values()), default=0) if isinstance(header, dict) else 0
    write_header(source / "transformer" / WEIGHTS, header, bytes(size))
    refused(source / "transformer", f"{WEIGHTS}|{words}") if words.startswith("the") else refused(source, words)


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_truncated_files(source, length):
    content = (source / "transformer" / WEIGHTS).read_bytes()
    (source / "transformer" / WEIGHTS).write_bytes(content[:length])
    refused(source, f"{WEIGHTS} is damaged")


def test_flipped_bits_in_a_header(tmp_path):
    """Whatever it is, nothing but a UserError comes of it."""
    save_file({"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.float16)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    faults = 0
    for place in range(header):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "x.safetensors").write_bytes(flipped)
        try:
            dict(open_file(tmp_path / "x.safetensors"))
        except UserError:
            faults += 1
    assert faults > 0.9 * header


class Attack:
    """Unpickled carelessly, it runs a command."""

    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: {"x": torch.zeros(2), "attack": Attack()}, "holds more than tensors and was not run"),
        (lambda: {"state_dict": {"x": Attack()}}, "holds more than tensors and was not run"),
        (lambda: {"state_dict": torch.zeros(2)}, "holds no tensors by name"),
        (lambda: [torch.zeros(2)], "holds no tensors by name"),
        (lambda: {5: torch.zeros(2)}, "holds no tensors by name"),
        (lambda: {"x\n": torch.zeros(2)}, "odd name"),
        (lambda: {"x": torch.zeros(1).expand(10**13)}, "'x', which is no dense tensor"),
        (lambda: {"x": torch.zeros(2, 2).to_sparse()}, "'x', which is no dense tensor"),
        (lambda: {"x": torch.zeros(2, device="meta")}, "'x', which is no dense tensor"),
        (lambda: {"x": torch.zeros(2, dtype=torch.complex64)}, "'x' as complex64: only"),
        (lambda: {"x": torch.zeros(2, dtype=torch.float8_e5m2)}, "'x' as float8_e5m2: only"),
    ],
)
def test_odd_pickles(source, content, words):
    folder = source / "transformer"
    (folder / WEIGHTS).unlink()
    torch.save(content(), folder / f"{STEM}.bin")
    refused(source, words)
    assert not Path("attacked").exists()


def test_a_pickle_is_not_opened_by_a_pytorch_that_may_run_it(source, monkeypatch):
    folder = source / "transformer"
    (folder / WEIGHTS).unlink()
    torch.save({"x": torch.zeros(2)}, folder / f"{STEM}.bin")
    for version in ("2.9.1+cpu", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", version)
        refused(source, rf"PyTorch {re.escape(version)} may run as code: pip install 'torch>=2\.10'")


def test_a_pickle_that_would_unpack_to_more_than_it_is(source):
    folder = source / "transformer"
    (folder / WEIGHTS).unlink()
    torch.save({"x": torch.zeros(10**6)}, "stored.bin")
    with (
        zipfile.ZipFile("stored.bin") as stored,
        zipfile.ZipFile(folder / f"{STEM}.bin", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    Path("stored.bin").unlink()
    refused(source, rf"{STEM}\.bin is damaged.*it is compressed")


def test_parameters_in_a_pickle(tmp_path):
    """Some scripts save parameters, which want gradients, in place of tensors."""
    torch.save({"x": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.bin")
    np.testing.assert_array_equal(open_file(tmp_path / "x.bin")["x"], [1, 1])


@pytest.mark.parametrize(
    "shapes",
    [
        {"visual.conv1.weight": (1,)},
        {"visual.positional_embedding": (0, 128)},
        {"visual.transformer.resblocks.0.mlp.c_fc.weight": (4,)},
        {"positional_embedding": ()},
        {"visual.transformer.resblocks.0.attn.in_proj_weight": ()},
        {"visual.transformer.resblocks.0.attn.in_proj_weight": (5, 128)},
    ],
)
def test_odd_shapes_without_a_description(tmp_path, monkeypatch, shapes):
    monkeypatch.chdir(tmp_path)
    tensors = {key: x.numpy() for key, x in stock.OpenClip(30, 8).state_dict().items()}
    tensors |= {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    save_file(tensors, tmp_path / "clip.safetensors")
    refused(Path("clip.safetensors"), r"clip\.safetensors|the weights do not fit the network")


def test_integers_among_the_layers(source):
    """Types that NumPy cannot join."""
    path = source / "text_encoder" / "model.safetensors"
    key = "encoder.block.1.layer.0.SelfAttention.q.weight"
    tensors = {name: x.astype("bfloat16") for name, x in load_file(path).items()}
    save_file(tensors | {key: np.ones(tensors[key].shape, np.int64)}, path, metadata={"format": "pt"})
    refused(source / "text_encoder", "text_encoder|the weights")


CODE = {
    "auto_map": {"AutoModel": "own.Own"},
    "_name_or_path": "/home/somebody/model",
    "custom_pipelines": {"x": {"impl": "own.Own"}},
    "quantization_config": {"quant_method": "own"},
    "attn_implementation": "somebody/kernel",
    "_class_name": "Own",
    "architectures": ["Own"],
    "transformers_version": "../x",
    "scaling_factor": 3.0,
    "eos_token_id": 1,
}


def test_a_card_keeps_no_names_of_code_or_places(source, tmp_path):
    names = {name: value for name, value in CODE.items() if name not in ("_class_name", "architectures")}
    change(source / T5, **names)
    kept = from_torch(source / "text_encoder", tmp_path / "ours")["text_encoder"]["source"]
    assert kept["eos_token_id"] == 1
    assert not kept.keys() & (CODE.keys() - {"eos_token_id", "scaling_factor"})


@pytest.mark.parametrize(
    ("network", "config"), [(0, {"odd": 1}), (1, {"block_out_channels": 5}), (2, {"odd": 1}), (3, {"text_config": 5})]
)
def test_a_card_that_no_library_can_read(network, config):
    with pytest.raises(UserError) as caught:
        describe(known()[network], {"config": config, "source": {"a": [[[]]]}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", range(3))
def test_an_export_says_what_we_say(source, number):
    """A card comes from strangers too: what it kept of another library's file does not change the class or a size."""
    architecture = known()[number]
    _, theirs = of_folder(source, architecture.component)
    part = {"config": architecture.keys.config(theirs), "source": theirs | CODE | {"d_model": 5, "num_layers": 77}}
    described = describe(architecture, part | ({"scaling_factor": 0.7} if architecture.component == "vae" else {}))
    name = described["_class_name"] if architecture.library == "diffusers" else described["architectures"][0]
    assert name == architecture.class_name
    assert described["eos_token_id"] == 1
    assert described.items() >= architecture.keys.their_config(part["config"]).items()
    assert not described.keys() & (CODE.keys() - {"eos_token_id", "scaling_factor", "_class_name", "architectures"})
    assert architecture.component != "vae" or described["scaling_factor"] == 0.7
