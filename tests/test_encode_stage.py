"""The stage `encode`, with a toy teacher: how many videos devices get at a time, and how it goes on."""

import json
import os
import shutil

import commands
import jax
import numpy as np
import pytest
import toy_family
from ml_collections import ConfigDict

import dollar_jax.stages.encode as stage
from configs import dollar, shapes
from dollar_jax import checkpoint
from dollar_jax.data import pieces
from dollar_jax.data.dataset import open_dataset
from dollar_jax.data.shapes import CAPTIONS, ShapesWorld
from dollar_jax.data.text import write_word_tokenizer
from dollar_jax.data.video import write_video
from dollar_jax.errors import UserError
from dollar_jax.importing import trust
from dollar_jax.pipeline import Pipeline
from dollar_jax.sharding import make_mesh
from dollar_jax.stages.common import encoded_source

SIZE = {"frames": 9, "height": 32, "width": 32, "fps": 8, "independent_chunk": 0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The parts of a teacher that encode."""
    folder, card = tmp_path_factory.mktemp("encode") / "teacher", {"role": "teacher", "video": SIZE}
    write_word_tokenizer(folder / "tokenizer", CAPTIONS)
    for name, sizes in {"vae": {}, "text_encoder": {"vocab_size": 40}}.items():
        checkpoint.save_params(folder / name, getattr(toy_family, name)(**sizes).init(jax.random.key(0)))
        card[name] = {"architecture": f"toy_family:{name}", "config": sizes, "path": name, "item": ""}
    card["vae"] |= {"scaling_factor": 1.0}
    checkpoint.write_card(folder, card | {"tokenizer": {"path": "tokenizer", "length": 7}})
    return folder


@pytest.fixture
def config(teacher):
    """Of 40 clips of the shapes world."""
    trust(["toy_family"])
    config = shapes.get_config()
    config.data.clips, config.teacher.path = 40, str(teacher)
    return config


@pytest.fixture
def batches(monkeypatch):
    """The number of videos in each batch of the VAE."""
    sizes, run = [], Pipeline.encode_video

    def spy(self, video):
        sizes.append(len(video))
        return run(self, video)

    monkeypatch.setattr(Pipeline, "encode_video", spy)
    return sizes


class Killed(BaseException):
    """The end of a process."""


def run(config, workdir):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        stage.encode(config, workdir, mesh)


@pytest.mark.parametrize(("shares", "size", "wanted"), [(1, 32, [32, 32]), (2, 10, [20, 20]), (6, 1, [6] * 7)])
def test_each_device_gets_as_many_videos_as_the_config_says(
    shares, size, wanted, config, batches, monkeypatch, tmp_path
):
    """Whatever their number: none computes the videos of another."""
    assert config.data.encode_batch_size == 32
    config.data.encode_batch_size = size
    monkeypatch.setattr(stage, "batch_shares", lambda mesh: shares)
    run(config, tmp_path)
    assert batches == wanted
    source = encoded_source(config, tmp_path)
    assert [source[i]["caption"] for i in range(40)] == [clip["caption"] for clip in ShapesWorld(40, config.seed)]


def test_large_videos_are_encoded_one_at_a_time(config, batches, tmp_path):
    """81 frames of 480 x 832 take 0.4 GB as pixels in float32, and a hundred times that in the VAE."""
    assert dollar.get_config().data.encode_batch_size == 1
    config.data = ConfigDict({name: value for name, value in config.data.items() if name != "encode_batch_size"})
    run(config, tmp_path)
    assert batches == [1] * 40


def test_a_run_that_was_killed_goes_on(config, batches, monkeypatch, tmp_path):
    """To the data of one that was not. Another teacher is refused."""
    monkeypatch.setattr(pieces, "PIECE", 16)
    config.data.encode_batch_size = 4
    run(config, tmp_path / "once")
    batches.clear()
    spy = Pipeline.encode_video
    with monkeypatch.context() as killing:
        killing.setattr(Pipeline, "encode_video", lambda *rest: spy(*rest) if len(batches) < 6 else killed())
        with pytest.raises(Killed):
            run(config, tmp_path / "W")
    assert encoded_folders(tmp_path / "W") == ["data.unfinished"]

    other = tmp_path / "other"
    shutil.copytree(config.teacher.path, other)
    params = toy_family.vae().init(jax.random.key(1))
    shutil.rmtree(other / "vae")
    checkpoint.save_params(other / "vae", params)
    mine, config.teacher.path = config.teacher.path, str(other)
    with pytest.raises(UserError, match=r"data.unfinished was begun from other videos, captions or settings"):
        run(config, tmp_path / "W")
    config.teacher.path = mine

    batches.clear()
    run(config, tmp_path / "W")
    assert batches == [4] * 6  # 24 of 40
    assert encoded_folders(tmp_path / "W") == ["data"]
    once, source = (encoded_source(config, tmp_path / name) for name in ("once", "W"))
    np.testing.assert_equal([source[i] for i in range(40)], [once[i] for i in range(40)])


def killed():
    raise Killed


def encoded_folders(workdir):
    return sorted(path.name for path in (workdir / "encoded").glob("data*"))


def test_files_are_encoded_on_all_devices(teacher, config, tmp_path):
    """By `python -m dollar_jax.data --encode`, as by the stage."""
    lines = []
    for index, clip in enumerate(ShapesWorld(5, seed=0)):
        write_video(tmp_path / f"{index}.mp4", clip["video"], fps=8)
        lines.append(json.dumps({"file": f"{index}.mp4", "caption": clip["caption"]}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    options = {"videos": tmp_path, "captions": tmp_path / "captions.jsonl", "config": "configs/shapes.py"}
    result = commands.run(commands.command("data", **options, out=tmp_path / "raw"))
    assert result.returncode == 0, result.stderr
    encoding = {"out": tmp_path / "made", "encode": True, "teacher": teacher, "trust": "toy_family"}
    paths = os.pathsep.join([str(commands.ROOT), str(commands.ROOT / "tests/helpers")])
    environment = os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    result = commands.run(commands.command("data", **options, **encoding), environment)
    assert result.returncode == 0, result.stderr
    assert "data: 0.0 GB per 1,000 videos, 0.0 GB for 5, before compression" in result.stdout
    assert "5 of 5 files written" in result.stdout
    config.data.path, config.data.held_out = str(tmp_path / "raw"), 0.0
    run(config, tmp_path / "W")
    by_stage, made = encoded_source(config, tmp_path / "W"), open_dataset(tmp_path / "made")
    assert made.files == open_dataset(tmp_path / "raw").files == [f"{i}.mp4" for i in range(5)]
    for i in range(5):
        np.testing.assert_allclose(made[i]["latents"], by_stage[i]["latents"], atol=1e-5)
        np.testing.assert_allclose(made[i]["text"], by_stage[i]["text"], atol=1e-3)
        assert made[i]["caption"] == by_stage[i]["caption"]
