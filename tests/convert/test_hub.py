"""Folders on the Hugging Face hub, from a small hub on the loopback address."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import serving
from huggingface_hub import constants
from transformers import CLIPConfig, CLIPModel

from dollar_jax import card
from dollar_jax.convert import hub as client
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.tensors import open_folder
from dollar_jax.errors import UserError
from dollar_jax.reading import inside

WEIGHTS = "model.safetensors"
EVERYTHING = (*client.DESCRIPTIONS, *client.WEIGHTS)
# Of no use here, or code.
UNREAD = ("model.bin", "model.fp16.safetensors", "pytorch_model.pt", "own.py", "README.md", "unet/model.safetensors")
UNREAD += ("unet/config.json", "train.json", "corpus.txt", "huge.model")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and a cache that is empty."""
    monkeypatch.chdir(tmp_path)
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """PickScore's kind of folder, small, with more files than are read."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 30, "eos_token_id": 29}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(projection_dim=8, text_config=text, vision_config=vision)).save_pretrained(folder)
    (folder / "unet").mkdir()
    for name in UNREAD:
        (folder / name).write_text("not to be downloaded")
    return folder


def write(folder: Path, **files) -> Path:
    """A folder with these files; `a__b` is b.json in the folder a, or a file of weights."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_suffix(".json") if isinstance(content, dict) else path.with_suffix(".safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
    return folder


def refused(words: str, source: str = "some/model", revision: str = "") -> None:
    """In one line, with nothing left behind."""
    before = sorted(Path().iterdir())
    with pytest.raises(UserError, match=words) as caught:
        from_torch(source, Path("ours"), revision)
    assert "\n" not in str(caught.value)
    assert sorted({*Path().iterdir()} - {Path("cache")}) == [path for path in before if path != Path("cache")]


@pytest.fixture(scope="module")
def converted(clip, tmp_path_factory) -> Path:
    """What becomes of the folder when it is here."""
    folder = tmp_path_factory.mktemp("converted") / "clip"
    from_torch(clip, folder)
    return folder


def assert_converted(ours: Path, theirs: Path, commit: str) -> None:
    cards = [json.loads((folder / "config.json").read_text()) for folder in (ours, theirs)]
    assert cards[0] == cards[1] | {"hub": {"repository": "some/clip", "commit": commit}}
    assert (ours / "clip/checksums.json").read_text() == (theirs / "clip/checksums.json").read_text()


def test_a_network_is_converted_as_if_it_were_here(hub, clip, converted, monkeypatch, tmp_path):
    """At one commit, also if the branch moves to another while it is downloaded."""
    commit = hub.publish("some/clip", clip)
    download = client.download

    def download_and_move(*arguments):
        found = download(*arguments)
        hub.publish("some/clip", write(tmp_path / "new", model=b"new"))
        return found

    monkeypatch.setattr(client, "download", download_and_move)
    from_torch("some/clip", Path("ours"))
    assert_converted(Path("ours"), converted, commit)


def test_the_command(hub, clip, converted):
    """At a tag, by a connection that breaks. Its own lines stand by themselves among bars, and warnings come once."""
    commit = hub.publish("some/clip", clip, "v1")
    hub.after[WEIGHTS] = 2500
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": "cache", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "dollar_jax.convert", "from_torch", "some/clip", "ours", "--revision=v1"],
        env={**os.environ, **environment, "TQDM_POSITION": "-1"},  # bars as in a terminal
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    bars, lines = [], []
    for line in done.stdout.replace("\x1b[A", "").splitlines():
        (bars if re.match("Fetching|Download|Reconstruct|Error while downloading", line) else lines).append(line)
    tensors = len(open_folder(clip))
    size = (clip / WEIGHTS).stat().st_size / 1e6
    own = [f"clip: {tensors} tensors, {size:,.1f} MB", "ours: a clip"]
    assert [line for line in lines if line] == [f"some/clip: commit {commit}", "Trying to resume download...", *own]
    assert any(line.startswith("Fetching 2 files: 100%") for line in bars)
    assert hub.fetched() == ["config.json", WEIGHTS, WEIGHTS]
    assert_converted(Path("ours"), converted, commit)


def test_all_files_of_a_pipeline_come(hub, plain):
    hub.publish("some/model", plain)
    folder, _ = client.download("some/model", "main", EVERYTHING)
    there, here = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (plain, folder)
    )
    assert here == there


def test_a_broken_connection_goes_on_in_the_middle_of_a_file(hub, clip, monkeypatch):
    hub.publish("some/clip", clip)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # of 10 MB
    hub.after[WEIGHTS] = 2500
    folder, _ = client.download("some/clip", "main", EVERYTHING)
    assert (folder / WEIGHTS).read_bytes() == (clip / WEIGHTS).read_bytes()
    ranges = [where for method, path, where in hub.seen if method == "GET" and path.endswith(WEIGHTS)]
    assert ranges == [None, "bytes=2000-"]


def test_a_download_that_broke_off_goes_on_at_the_next_file(hub, clip):
    hub.publish("some/clip", clip)
    hub.broken.add(WEIGHTS)
    refused(
        r"some/clip could not be downloaded from the Hugging Face hub \(500\): .* whole files are kept", "some/clip"
    )
    hub.broken.clear()
    hub.fetched()
    client.download("some/clip", "main", EVERYTHING)
    assert hub.fetched() == [WEIGHTS]


def test_a_branch_that_moved_between_two_downloads(hub, clip, tmp_path):
    """All files are of the new commit."""
    hub.publish("some/clip", clip)
    client.download("some/clip", "main", client.DESCRIPTIONS)
    commit = hub.publish("some/clip", write(tmp_path / "new", config={"new": 1}, model=b"new"))
    folder, found = client.download("some/clip", "main", EVERYTHING)
    assert found == commit
    assert json.loads((folder / "config.json").read_text()) == {"new": 1}
    assert (folder / WEIGHTS).read_bytes() == b"new"


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_cache_is_used(hub, clip, monkeypatch, offline):
    commit = hub.publish("some/clip", clip)
    client.download("some/clip", "main", EVERYTHING)
    hub.seen.clear()
    hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    for revision in ("main", commit):
        folder, found = client.download("some/clip", revision, EVERYTHING)
        assert found == commit
        assert (folder / WEIGHTS).read_bytes() == (clip / WEIGHTS).read_bytes()
    words = "HF_HUB_OFFLINE is set: unset it" if offline else "hub cannot be reached: check the network"
    refused(rf"some/model is no folder here, its revision 'main' is not whole in the cache, and .*{words}")


def test_a_snapshot_that_is_not_whole_is_not_used(hub, clip, monkeypatch):
    hub.publish("some/model", clip)
    _, commit = client.download("some/model", "main", client.DESCRIPTIONS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(f"some/model is no folder here, its revision '{commit}' is not whole in the cache")


def test_what_the_hub_does_not_have(hub, clip):
    refused("some/model is neither a folder here nor a model that you may see on the Hugging Face hub: check the name")
    refused("some--other/model is neither a folder here", "some--other/model")
    hub.publish("some/model", clip)
    for revision in ("v2", "f" * 40, "../v2"):
        refused(f"some/model has no revision '{revision}' on the Hugging Face hub", revision=revision)
    hub.gated.add("some/model")
    refused("some/model is gated: accept its terms at https://huggingface.co/some/model")


@pytest.mark.parametrize(
    "name", ["nowhere", "/no/where", "./no/where", "some/model/vae", "https://huggingface.co/a/b", "a/"]
)
def test_what_is_no_id(name):
    with pytest.raises(UserError, match=r"does not exist: name a file or a folder here, or .* as OWNER/NAME"):
        client.require_repository(name)


def test_a_folder_here_has_no_revision(hub, tmp_path):
    Path("some/model").mkdir(parents=True)
    refused("--revision is for a repository of the Hugging Face hub: some/model is here already", revision="main")
    assert not hub.seen


REFUSED = {
    "unknown pipeline": ({"model_index": {"_class_name": "FluxPipeline"}}, "holds a FluxPipeline"),
    "unknown network": ({"config": {"_class_name": "Flux"}}, "describes a Flux, which cannot be converted"),
    "no folder": ({"x": {}}, "some/model has neither model_index.json nor config.json"),
    "nothing": ({}, "some/model has neither model_index.json nor config.json"),
    "adapter": ({"adapter_config": {}}, "is a LoRA"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_before_its_weights_come(hub, tmp_path, case):
    files, words = REFUSED[case]
    hub.publish("some/model", write(tmp_path / "repository", **files, model=b"weights", transformer__model=b"weights"))
    refused(words)
    assert WEIGHTS not in {Path(name).name for name in hub.fetched()}


def test_pickles_are_not_downloaded(hub, clip):
    shutil.copytree(clip, "repository")
    Path("repository", WEIGHTS).rename("repository/pytorch_model.bin")
    hub.publish("some/model", Path("repository"))
    refused("some/model has no weights in safetensors, and pickles are not downloaded")
    assert hub.fetched() == ["config.json"]


def failing(monkeypatch, error):
    """The download, which raises this error."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    client.download("some/model", "main", EVERYTHING)


def test_a_full_disk_is_not_the_hubs_fault(monkeypatch):
    """The command says so, see test_refusals.py."""
    with pytest.raises(OSError, match="No space left on device"):
        failing(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_a_token_is_not_printed(monkeypatch):
    with pytest.raises(
        UserError, match=r"could not be downloaded from the Hugging Face hub \(RuntimeError\)"
    ) as caught:
        failing(monkeypatch, RuntimeError("illegal header 'Bearer hf_secret'"))
    assert "secret" not in str(caught.value)


def test_links_of_the_cache_lead_into_it_only(tmp_path):
    """Files that repositories share are links to links: snapshots/COMMIT/NAME -> blobs/NAME -> blobs of all."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0a1b"
    shared, blobs = tmp_path / "blobs", tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot, shared / "0a", blobs):
        folder.mkdir(parents=True)
    for name, target in {
        "shared": shared / "0a" / ("0a" * 32),
        "strange": shared / "notes",
        "odd": shared / "0a" / ("0b" * 32),
    }.items():
        target.write_text(name)
        (blobs / name).symlink_to(target)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert inside(snapshot, "shared").read_text() == "shared"
    for name in ("strange", "odd"):
        with pytest.raises(UserError, match="outside itself"):
            inside(snapshot, name)


@pytest.mark.parametrize(
    "changes",
    [{"repository": "a/b\n"}, {"repository": "a"}, {"repository": "a/[b](x)"}, {"commit": "main"}, {"more": 1}],
)
def test_a_card_names_no_more_than_a_repository(changes):
    origin = {"repository": "some/model", "commit": "0a" * 20}
    card.check({"role": "clip", "hub": origin}, "config.json")
    with pytest.raises(UserError, match="hub"):
        card.check({"role": "clip", "hub": origin | changes}, "config.json")
