"""What a conversion refuses: one line that names the fault, and nothing left behind."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, program, run
from safetensors.numpy import load_file, save_file

from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.errors import UserError

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = "transformer/config.json"
KEY = "transformer_blocks.1.attn1.to_q.weight"


def change_tensors(folder: Path, **changes) -> None:
    tensors = load_file(folder / WEIGHTS) | {KEY if name == "KEY" else name: x for name, x in changes.items()}
    tensors = {key: x for key, x in tensors.items() if x is not None}
    save_file(tensors, folder / WEIGHTS)


def change_json(folder: Path, name: str, **changes) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


class Attack:
    """Unpickled carelessly, it runs a command."""

    def __reduce__(self):
        return os.system, ("touch attacked",)


def hide_code_in_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({KEY: torch.zeros(2), "attack": Attack()}, folder / "transformer" / "pytorch_model.bin")


def lose_a_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {KEY: "diffusion_pytorch_model-00001-of-00001.safetensors"}}
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


FAULTS = {
    "missing key": (
        lambda f: change_tensors(f, KEY=None),
        r"nothing fills blocks/attention/query/kernel, layers \[1\]",
    ),
    "extra key": (lambda f: change_tensors(f, extra=np.zeros(3, np.float32)), "extra matches 0 rules"),
    "wrong shape": (lambda f: change_tensors(f, KEY=np.zeros((3, 2), np.float32)), rf"{KEY} has shape \(3, 2\)"),
    "cut off": (truncate, "diffusion_pytorch_model.safetensors is damaged"),
    "unknown architecture": (
        lambda f: change_json(f, CONFIG, _class_name="FluxTransformer2DModel"),
        "describes a FluxTransformer2DModel, which cannot be converted",
    ),
    "unknown layer": (lambda f: change_json(f, CONFIG, ofs_embed_dim=512), "ofs_embed_dim"),
    "unknown field": (lambda f: change_json(f, CONFIG, depth=3), "config.json has depth, which is not supported"),
    "no JSON": (lambda f: (f / CONFIG).write_text("{"), "config.json is not JSON"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "transformer has no weights"),
    "lost shard": (lose_a_shard, "diffusion_pytorch_model-00001-of-00001.safetensors is missing"),
    "code in a pickle": (hide_code_in_a_pickle, "holds more than tensors and was not run"),
    "lora": (lambda f: (f / "pytorch_lora_weights.safetensors").touch(), "pytorch_lora_weights.safetensors is damaged"),
    "other pipeline": (
        lambda f: change_json(f, "model_index.json", _class_name="CogVideoXImageToVideoPipeline"),
        "holds a CogVideoXImageToVideoPipeline",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json is missing"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_leave_nothing(plain, tmp_path, fault, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, words = FAULTS[fault]
    shutil.copytree(plain, tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(UserError, match=words) as error:
        from_torch(tmp_path / "source", tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_exists_is_left_alone(plain, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for convert in (from_torch, to_torch):
        if convert is to_torch:
            from_torch(plain, tmp_path / "ours")
        with pytest.raises(UserError, match="exists already"):
            convert(plain if convert is from_torch else tmp_path / "ours", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_networks_that_diffusers_does_not_have(plain, tmp_path):
    from_torch(plain, tmp_path / "ours")
    change_json(tmp_path / "ours", "config.json", prediction_type="v")
    card = json.loads((tmp_path / "ours" / "config.json").read_text())
    card["vae"]["config"]["exactly_causal"] = True
    (tmp_path / "ours" / "config.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="the VAE has exactly_causal = True, which diffusers does not know"):
        to_torch(tmp_path / "ours", tmp_path / "back")
    with pytest.raises(UserError, match="holds no 'student'"):
        to_torch(tmp_path / "ours", tmp_path / "back", "student")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["from_torch", "nowhere", "ours"], "error: nowhere does not exist"),
        (["to_torch", "nowhere", "ours"], "error: nowhere: no checkpoint here"),
        (["from_torch", "ours"], "error: wanted COMMAND SRC DST, got from_torch ours"),
        (["from_jax", "a", "b"], "error: from_jax is neither from_torch nor to_torch"),
    ],
)
def test_bad_commands_are_one_line(arguments, words, tmp_path):
    done = run(["convert", *arguments], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk(plain, tmp_path, monkeypatch):
    # No file may be longer than 30 blocks of 1024 bytes. (Python would leave modules half compiled, for all others.)
    command = ["bash", "-c", 'ulimit -f 30; exec "$@"', "bash", *program(["convert", "from_torch", plain, "ours"])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the disk is full")
    assert not list(tmp_path.iterdir())
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="the disk is full"):
        from_torch(plain, tmp_path / "ours")
    assert not list(tmp_path.iterdir())
