"""A family of this file's own, as somebody would add it: a description, networks and a place on the list."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stock
from einops import reduce
from safetensors.numpy import load_file, save_file
from transformers import T5Config, T5EncoderModel

from configs.dollar import get_config as dollar_config
from dollar_jax import checkpoint, diffusion, importing
from dollar_jax.convert import families, t5
from dollar_jax.convert.architectures import known
from dollar_jax.convert.families import cogvideox
from dollar_jax.convert.families.family import Architecture, Family
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.tables import linear_rules
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.errors import UserError
from dollar_jax.models.network import Network
from dollar_jax.plan.programs import iteration
from dollar_jax.plan.teachers import teacher_card
from dollar_jax.sharding import make_mesh
from dollar_jax.stages.student import student_config

CHANNELS, TEXT, LENGTH = 4, stock.T5["d_model"], 20


def linear(rows, columns):
    return {"kernel": jnp.ones((rows, columns)), "bias": jnp.ones(columns)}


def transformer(channels: int, **_) -> Network:
    def init(key):
        return {"text": linear(TEXT, channels), "mix": linear(channels, channels)}

    def apply(params, latents, times, condition):
        shift = condition.embedding.mean(1) @ params["text"]["kernel"] + times[:, None] / 1000
        return latents @ params["mix"]["kernel"] + shift[:, None, None, None]

    return Network(init, apply)


def vae(channels: int) -> Network:
    """Every fourth frame, in squares of 8 by 8."""

    def apply(params, x, method):
        if method == "decode":
            return x[..., :3].repeat(4, 1)[:, 3:].repeat(8, 2).repeat(8, 3)
        mean = reduce(x[:, ::4], "b f (h y) (w x) c -> b f h w c", "mean", y=8, x=8) @ params["mix"]["kernel"]
        return mean, mean

    return Network(lambda key: {"mix": linear(3, channels)}, apply)


class Keys:
    """Ours is `channels` where theirs is `z_dim`; their `factor` divides latents. `names` of layers are ours=theirs."""

    def __init__(self, **names):
        self.names = names

    def config(self, theirs):
        return {"channels": theirs["z_dim"]}

    def their_config(self, config):
        return {"z_dim": config["channels"]}

    def table(self, config):
        return linear_rules({theirs: ours for ours, theirs in self.names.items()})

    def scale(self, theirs):
        return {"scaling_factor": 1 / theirs["factor"]}

    def their_scale(self, part):
        return {"factor": 1 / part["scaling_factor"]}


def at_own_size(card):
    video = {"frames": 9, "height": 16, "width": 24, "fps": 16, "independent_chunk": 0}
    return card | {"video": video, "latent_shape": [3, 2, 3, CHANNELS]}


def read_scheduler(theirs):
    schedule = {"kind": "flow", "shift": theirs["flow_shift"]}
    times = diffusion.make_schedule(**schedule).spaced(4)
    return {"prediction_type": "flow", "schedule": schedule, "times": times, "sampler": "ddim"}


def write_scheduler(card):
    return ("ToyScheduler", {"flow_shift": card["schedule"]["shift"]}) if card["sampler"] == "ddim" else None


DIT = "test_families:transformer"
TOY = Family(
    pipeline="ToyPipeline",
    components=(
        Architecture(
            "transformer", "test_families:transformer", Keys(text="text_in", mix="proj"), "diffusers", "ToyDiT"
        ),
        Architecture("vae", "test_families:vae", Keys(mix="quant"), "diffusers", "ToyVAE"),
        Architecture("text_encoder", "t5", t5, "transformers", "T5EncoderModel"),  # shared with CogVideoX
    ),
    public={
        "toy-1b": {
            "transformer": {"architecture": DIT, "config": {"channels": CHANNELS}},
            "vae": {"architecture": "test_families:vae", "config": {"channels": CHANNELS}, "scaling_factor": 1.0},
            "text_encoder": {"architecture": "t5", "config": {"d_model": TEXT}},
            "tokenizer": {"length": LENGTH},
            "prediction_type": "flow",
            "schedule": {"kind": "flow", "shift": 3.0},
        }
    },
    guidance=4.0,
    negative_prompt="worst quality",
    text_length=lambda card: LENGTH,
    at_own_size=at_own_size,
    read_scheduler=read_scheduler,
    write_scheduler=write_scheduler,
    call=lambda card: {"guidance_scale": card["guidance"] + 1, "num_frames": card["video"]["frames"]},
    unscaled="latents * pipe.vae.config.factor",
    index=lambda card: {"boundary_ratio": None, "transformer_2": [None, None]},
)


@pytest.fixture(autouse=True)
def listed(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, TOY))
    monkeypatch.setattr(importing, "_trusted", importing._trusted | {__name__})
    assert sys.modules[__name__].TOY is TOY


def write_model(folder, config, tensors):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder as the other library would write it."""
    folder, random = tmp_path_factory.mktemp("toy") / "theirs", np.random.default_rng(0)

    def layer(name, rows, columns):
        weights = {f"{name}.weight": random.normal(size=(columns, rows)), f"{name}.bias": random.normal(size=columns)}
        return {key: x.astype(np.float32) for key, x in weights.items()}

    tensors = layer("text_in", TEXT, CHANNELS) | layer("proj", CHANNELS, CHANNELS)
    write_model(folder / "transformer", {"_class_name": "ToyDiT", "z_dim": CHANNELS}, tensors)
    write_model(
        folder / "vae", {"_class_name": "ToyVAE", "z_dim": CHANNELS, "factor": 0.5}, layer("quant", 3, CHANNELS)
    )
    stock.randomize(T5EncoderModel(T5Config(**stock.T5, feed_forward_proj="gated-gelu"))).save_pretrained(
        folder / "text_encoder"
    )
    stock.write_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "ToyPipeline",
        **TOY.index({}),
        "scheduler": ["diffusers", "ToyScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "ToyDiT"],
        "vae": ["diffusers", "ToyVAE"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "ToyScheduler", "flow_shift": 5.0}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def content(path):
    return json.loads(path.read_text())


def test_there_and_back(written, tmp_path):
    card = from_torch(written, tmp_path / "ours")
    assert card["guidance"] == 4.0
    assert card["tokenizer"]["length"] == LENGTH
    assert card["schedule"] == {"kind": "flow", "shift": 5.0}
    assert card["vae"]["scaling_factor"] == 2.0
    assert card["latent_shape"] == [3, 2, 3, CHANNELS]
    to_torch(tmp_path / "ours", tmp_path / "back")
    names = ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json"]
    for name in [*names, "text_encoder/config.json"]:
        assert content(tmp_path / "back" / name) == content(written / name)
    for file in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        before, after = (load_file(folder / f"{file}.safetensors") for folder in (written, tmp_path / "back"))
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)
    readme = (tmp_path / "back/README.md").read_text()
    assert "from diffusers import ToyPipeline\n\npipe = ToyPipeline.from_pretrained(" in readme
    assert "video = pipe(prompt, guidance_scale=5.0, num_frames=9).frames[0]" in readme


def test_a_student_brings_our_scheduler_where_none_of_the_family_samples_it(written, tmp_path):
    from_torch(written, tmp_path / "ours")
    card = checkpoint.read_card(tmp_path / "ours")
    video = card["video"] | {"frames": 8, "independent_chunk": 8}
    checkpoint.write_card(tmp_path / "ours", card | {"sampler": "renoise", "video": video})
    to_torch(tmp_path / "ours", tmp_path / "back")
    index = content(tmp_path / "back/model_index.json")
    assert index["scheduler"] == ["dollar_scheduler", "DollarScheduler"]
    # With tau = (t + 1) / 1000 at the times 999, 749, 499, 249: b = 5 tau / (1 + 4 tau).
    noise = content(tmp_path / "back/scheduler/scheduler_config.json")["noise"]
    np.testing.assert_allclose(noise, [1, 3.75 / 4, 2.5 / 3, 1.25 / 2], rtol=1e-6)
    readme = (tmp_path / "back/README.md").read_text()
    assert "trust_remote_code=True" in readme
    assert "latents = latents * pipe.vae.config.factor\n" in readme
    assert "latents.split(3, dim=2)" in readme


def test_a_plan():
    config = student_config(dollar_config(), "vsd_cd")
    config.reward.network.channels = CHANNELS
    card = teacher_card(config, "toy-1b")
    assert card["latent_shape"] == [40, 24, 40, CHANNELS]
    mesh = make_mesh(config.mesh, jax.devices())
    with jax.set_mesh(mesh):
        work = iteration(config, card, mesh)
    assert work.resident["teacher"].keys() == {"text", "mix"}
    assert work.resident["batch"]["condition"].embedding.shape[1:] == (LENGTH, TEXT)
    assert teacher_card(dollar_config(), "")["transformer"]["architecture"] == "cogvideox_dit"  # the first one
    with pytest.raises(UserError, match=r"--teacher is one of 2b, 5b, 1\.5-5b, wan.*, toy-1b, not '7b'"):
        teacher_card(dollar_config(), "7b")


def refused(command, source, target, words):
    with pytest.raises(UserError, match=words) as refusal:
        command(source, target)
    assert "\n" not in str(refusal.value)
    assert not target.exists()


def test_other_pipelines_are_refused_with_the_list(written, tmp_path):
    source = shutil.copytree(written, tmp_path / "source")
    (source / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    refused(
        from_torch,
        source,
        tmp_path / "ours",
        r"holds a FluxPipeline, .*\(known: CogVideoXPipeline, ToyPipeline, WanPipeline\)",
    )


@pytest.mark.parametrize("entry", [{"transformer_2": ["diffusers", "ToyDiT"]}, {"more\n": 1}, {"boundary_ratio": 0.9}])
def test_parts_that_would_be_left_out(written, tmp_path, entry):
    source = shutil.copytree(written, tmp_path / "source")
    (source / "model_index.json").write_text(json.dumps(content(written / "model_index.json") | entry))
    refused(from_torch, source, tmp_path / "ours", r"model_index.json has \S+ = .*, which is not supported")


def test_a_pipeline_has_the_networks_of_its_family(written, tmp_path):
    source = shutil.copytree(written, tmp_path / "source")
    (source / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    scheduler = {"_class_name": "CogVideoXDDIMScheduler", **stock.SCHEDULER}
    (source / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    words = "transformer holds a ToyDiT: the transformer of a CogVideoXPipeline is a CogVideoXTransformer3DModel"
    refused(from_torch, source, tmp_path / "ours", words)


def test_cards_without_a_family_are_refused(written, tmp_path, monkeypatch):
    from_torch(written, tmp_path / "ours")
    card = checkpoint.read_card(tmp_path / "ours")
    checkpoint.write_card(tmp_path / "ours", card | {"vae": card["vae"] | {"architecture": "cogvideox_vae"}})
    refused(to_torch, tmp_path / "ours", tmp_path / "back", "vae is cogvideox_vae: a ToyPipeline .* test_families:vae")
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES[:-1])
    words = "test_families:transformer: no other library .* known are cogvideox_dit"
    refused(to_torch, tmp_path / "ours", tmp_path / "back", words)


def test_cogvideox_is_sampled_as_its_card_says():
    video = {"frames": 9, "height": 32, "width": 48}
    card = {"times": [499, 999], "guidance": 5.0, "latent_shape": [4, 4, 6, 4], "lead": 1, "video": video}
    card |= {"vae": {"config": {"temporal_compression_ratio": 4}}, "tokenizer": {"length": 12}}
    wanted = {"num_inference_steps": 2, "guidance_scale": 6.0, "num_frames": 9, "height": 32, "width": 48}
    wanted["max_sequence_length"] = 12
    assert cogvideox.call(card) == cogvideox.call(card | {"negative_prompt": ""}) == wanted
    assert cogvideox.call(card | {"negative_prompt": "grey"}) == wanted | {"negative_prompt": "grey"}


def test_names_are_of_one_family_each(monkeypatch):
    monkeypatch.undo()
    assert len(families.public_models()) == sum(len(family.public) for family in families.FAMILIES)
    one = [architecture for architecture in known() if architecture.network != "wan_experts"]  # two of one class
    assert len({architecture.class_name for architecture in one}) == len(one) == len(known()) - 1
    assert len({architecture.network for architecture in known()}) == len(known())
