"""The stage `encode`, with a toy teacher: how many videos devices get at a time."""

import jax
import pytest
import toy_family
from ml_collections import ConfigDict

import dollar_jax.stages.encode as stage
from configs import dollar, shapes
from dollar_jax import checkpoint
from dollar_jax.data.shapes import CAPTIONS, ShapesWorld
from dollar_jax.data.text import write_word_tokenizer
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
