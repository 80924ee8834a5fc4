"""LoRAs of others merged into a teacher's weights: as the libraries that wrote them merge them, or refused."""

import hashlib
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from restored import restore
from safetensors.numpy import load_file, save_file

from dollar_jax import checkpoint
from dollar_jax.convert import import_lora, wan_dit
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.tensors import Tensors, open_folder
from dollar_jax.errors import UserError
from dollar_jax.lazy import lazy

FILE = "pytorch_lora_weights.safetensors"
RNG = np.random.default_rng
LAYER = "blocks.1.attn1.to_q"  # [24, 24]
WEIGHTS = "diffusion_pytorch_model.safetensors"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and diffusers among themselves
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of peft, which is not given a name of a model
]


@pytest.fixture(scope="module")
def source(wan_folder) -> Path:
    return wan_folder / "transformer"


@pytest.fixture
def model(source) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(source).requires_grad_(False)


def randomize(model: torch.nn.Module) -> None:
    """Random adapters: those of peft begin with zeros."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)


def merged(source: Path, target: Path, **options) -> dict[str, np.ndarray]:
    """The transformer of a conversion, in the names of diffusers."""
    card = from_torch(source, target, **options)
    part = card["transformer"]
    return restore(wan_dit.table(part["config"]), checkpoint.open_component(target, part))


def assert_fused(ours: dict[str, np.ndarray], fused: torch.nn.Module, source: Path) -> None:
    """The weights of both, which are not those of `source`."""
    theirs, before, changed = fused.state_dict(), open_folder(source), 0
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value.numpy(), rtol=0, atol=2e-6, err_msg=key)
        changed += np.abs(ours[key] - before[key]).max() > 0.01
    assert changed >= 8


PATTERNS = {
    "rank_pattern": {"to_k": 2, "^blocks.1.ffn.net.2": 5},
    "alpha_pattern": {"attn2.to_q": 9, "blocks.0.attn1.to_k": 5},
}


@pytest.mark.parametrize("rslora", [False, True])
def test_a_file_of_diffusers(model, source, tmp_path, rslora):
    """With ranks and alphas that differ by layer, which the file's metadata says."""
    targets = ["to_q", "to_k", "ffn.net.2", "time_proj"]
    config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, use_rslora=rslora, **PATTERNS)
    model.add_adapter(config)
    randomize(model)
    said = {key: list(x) if isinstance(x, set) else x for key, x in config.to_dict().items()}
    layers = get_peft_model_state_dict(model)
    WanPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=said)
    model.fuse_lora()
    model.unload_lora()
    assert_fused(merged(source, tmp_path / "ours", lora=tmp_path), model, source)


def comfyui(model: WanTransformer3DModel) -> dict[str, np.ndarray]:
    """A random LoRA in the names of Wan's authors, with an alpha and with changes of biases."""
    rng, tensors = RNG(2), {}
    for name, wanted in {
        "blocks.{}.attn1.to_q": "blocks.{}.self_attn.q",
        "blocks.{}.attn2.to_out.0": "blocks.{}.cross_attn.o",
        "blocks.{}.ffn.net.0.proj": "blocks.{}.ffn.0",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.time_proj": "time_projection.1",
    }.items():
        for block in range(2) if "{}" in name else [""]:
            rows, columns = model.get_submodule(name.format(block)).weight.shape
            key = f"diffusion_model.{wanted.format(block)}"
            tensors[f"{key}.lora_down.weight"] = 0.2 * rng.normal(size=(4, columns))
            tensors[f"{key}.lora_up.weight"] = 0.2 * rng.normal(size=(rows, 4))
            tensors[f"{key}.diff_b"] = 0.2 * rng.normal(size=rows)
            if "blocks" in name:
                tensors[f"{key}.alpha"] = np.asarray(6.0)
    return {key: np.asarray(x, np.float32) for key, x in tensors.items()}


def test_a_file_in_the_names_of_the_authors(model, source, tmp_path):
    """As the converter of diffusers reads it; it drops what changes a norm, a modulation or a whole weight."""
    tensors = comfyui(model)
    save_file(tensors, tmp_path / "comfy.safetensors")
    WanPipeline.load_lora_into_transformer(WanPipeline.lora_state_dict(tmp_path / "comfy.safetensors"), model)
    model.fuse_lora()
    model.unload_lora()
    ours = merged(source, tmp_path / "ours", lora=tmp_path / "comfy.safetensors")
    assert_fused(ours, model, source)
    change = {name: np.full(24, x, np.float32) for name, x in (("norm3.diff", 0.5), ("norm3.diff_b", 0.25))}
    change |= {"diff_m": np.full((1, 6, 24), 2.0, np.float32), "self_attn.norm_q.diff": np.ones(24, np.float32)}
    change |= {"self_attn.k.diff": np.full((24, 24), 3, np.float32)}
    more = {f"diffusion_model.blocks.0.{name}": x for name, x in change.items()}
    more |= {"diffusion_model.head.diff_m": np.full((1, 2, 24), 4.0, np.float32)}
    save_file(tensors | more, tmp_path / "more.safetensors")
    again = merged(source, tmp_path / "again", lora=tmp_path / "more.safetensors")
    moved = {key: float((again[key] - ours[key]).mean()) for key in ours if (again[key] != ours[key]).any()}
    assert moved == pytest.approx(
        {
            "blocks.0.norm2.weight": 0.5,
            "blocks.0.norm2.bias": 0.25,
            "blocks.0.scale_shift_table": 2.0,
            "blocks.0.attn1.norm_q.weight": 1.0,
            "blocks.0.attn1.to_k.weight": 3.0,
            "scale_shift_table": 4.0,
        },
        rel=1e-5,
    )


def test_into_a_file_with_the_names_of_the_authors(model, source, tmp_path, monkeypatch):
    """Whose keys are others than those of the LoRA."""
    monkeypatch.setattr(wan_dit, "HEAD", 12)
    config = wan_dit.config(json.loads((source / "config.json").read_text()))
    original = [rule.theirs for rule in wan_dit.original_table(config)]
    names = dict(zip([rule.theirs for rule in wan_dit.table(config)], original, strict=True))
    tensors = load_file(source / WEIGHTS)
    renamed = {}
    for key, value in tensors.items():
        block = key.split(".")[1] if key.startswith("blocks.") else ""
        template = key.replace(f"blocks.{block}.", "blocks.{layer}.") if block else key
        renamed[names[template].replace("{layer}", block)] = value
    save_file(renamed, tmp_path / "wan.safetensors")
    save_file(comfyui(model), tmp_path / "comfy.safetensors")
    ours = merged(tmp_path / "wan.safetensors", tmp_path / "ours", lora=tmp_path / "comfy.safetensors")
    wanted = merged(source, tmp_path / "wanted", lora=tmp_path / "comfy.safetensors")
    for key, value in wanted.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


def test_a_folder_of_peft(model, source, tmp_path):
    """With biases of its own, beside the weights."""
    folder = shutil.copytree(source, tmp_path / "model")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["to_v", "patch_embedding"], lora_bias=True)
    wrapped = get_peft_model(model, config)
    randomize(wrapped)
    wrapped.save_pretrained(folder)
    assert (folder / "adapter_config.json").exists()
    assert_fused(merged(folder, tmp_path / "ours"), wrapped.merge_and_unload(), source)


def layer(rank: int = 2, layer: str = f"transformer.{LAYER}", **changes) -> dict[str, np.ndarray]:
    """A LoRA of one layer."""
    rng = RNG(0)
    matrices = {"lora_A.weight": rng.normal(size=(rank, 24)), "lora_B.weight": rng.normal(size=(24, rank))}
    return {f"{layer}.{name}": x.astype(np.float32) for name, x in matrices.items()} | changes


def test_a_teacher_with_a_lora_beside_its_weights(wan_folder, tmp_path):
    """The card says so; each expert has its own."""
    folder = shutil.copytree(wan_folder, tmp_path / "stock")
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.875}
    (folder / "model_index.json").write_text(json.dumps(index))
    first, second = layer(), layer(3)
    save_file(first, folder / "style_lora.safetensors")
    save_file(second, folder / "transformer_2" / FILE)
    card = from_torch(folder, tmp_path / "ours")
    assert card["merged"] == [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in (folder / "style_lora.safetensors", folder / "transformer_2" / FILE)
    ]
    assert checkpoint.read_card(tmp_path / "ours")["merged"] == card["merged"]
    params = checkpoint.open_component(tmp_path / "ours", card["transformer"])
    before = open_folder(folder / "transformer")[f"{LAYER}.weight"]
    for expert, tensors in (("high", first), ("low", second)):
        down, up = tensors.values()
        kernel = params[expert]["blocks"]["self_attention"]["query"]["kernel"].read()
        np.testing.assert_allclose(kernel[1], (before + up @ down).T, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(kernel[0], open_folder(folder / "transformer")["blocks.0.attn1.to_q.weight"].T)


def test_a_sum_is_in_float32_and_keeps_the_dtype(source):
    """Two changes that bfloat16, whose steps at 256 are of 2, would lose one by one."""
    rules = import_lora.tables(wan_dit, wan_dit.config(json.loads((source / "config.json").read_text())))
    weight = np.full((24, 24), 256.0, ml_dtypes.bfloat16)
    up, down = np.full((24, 64), 0.125, ml_dtypes.bfloat16), np.full((64, 24), 0.09375, ml_dtypes.bfloat16)
    changes = {"lora_A.weight": down, "lora_B.weight": up, "diff": np.full((24, 24), 0.75, np.float32)}
    tensors = {f"transformer.{LAYER}.{name}": lazy(x) for name, x in changes.items()}
    lora = import_lora.Lora(Path("lora.safetensors"), Tensors(tensors, 0), {})
    (result,) = import_lora.merged(Tensors({f"{LAYER}.weight": lazy(weight)}, 0), lora, rules).lazy.values()
    assert result.dtype == result.read().dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(result.read().astype(np.float32), 258.0)  # of 257.5; 64 x 0.125 x 0.09375 = 0.75


def settings(**fields) -> dict[str, str]:
    fields = {"r": 2, "lora_alpha": 2} | fields
    said = {f"transformer.{name}": value for name, value in fields.items() if value is not None}
    return {"lora_adapter_metadata": json.dumps(said)}


KEY = f"transformer.{LAYER}"
FAULTS = {
    "another network's": (
        layer(layer="transformer.single.0.x"),
        {},
        "changes single.0.x.weight, which the network",
    ),
    "text encoder": (
        layer(layer="text_encoder.q"),
        {},
        "changes text_encoder.q.weight, which the network",
    ),
    "kohya": ({"lora_unet_blocks_0_self_attn_q.hada_w1_a": np.zeros((2, 2))}, {}, "is a LoHa, not a LoRA"),
    "odd key": (layer(extra=np.zeros(2)), {}, "has extra, which is not known in a LoRA"),
    "DoRA": (layer() | {f"{KEY}.lora_magnitude_vector": np.zeros(24)}, {}, "is a DoRA, not a LoRA"),
    "DoRA by setting": (layer(), settings(use_dora=True), "use_dora: True is not one of"),
    "LoKr": ({f"{KEY}.lokr_w1": np.zeros((2, 2))}, {}, "is a LoKr, not a LoRA"),
    "other kind": (layer(), settings(peft_type="LOHA"), "peft_type: 'LORA' was expected"),
    "shape": (
        layer() | {f"{KEY}.lora_B.weight": np.zeros((25, 2))},
        {},
        r"\(25, 2\) and \(2, 24\), does not fit",
    ),
    "ranks": (layer() | {f"{KEY}.lora_B.weight": np.zeros((24, 3))}, {}, r"\(24, 3\) and \(2, 24\), does not fit"),
    "columns": (layer() | {f"{KEY}.lora_A.weight": np.zeros((2, 9))}, {}, r"\(24, 2\) and \(2, 9\), does not fit"),
    "vector": (layer() | {f"{KEY}.lora_A.weight": np.zeros(24)}, {}, r"\(24, 2\) and \(24,\), does not fit"),
    "bias": (layer() | {f"{KEY}.lora_B.bias": np.zeros(23)}, {}, r"\(23,\), does not fit a weight of \(24,\)"),
    "empty": ({}, settings(), "is empty: is it a LoRA"),
    "half": ({f"{KEY}.lora_A.weight": np.zeros((2, 24))}, {}, "to_q.weight lacks a matrix"),
    "alpha alone": ({f"{KEY}.alpha": np.asarray(2.0)}, {}, "to_q.weight lacks a matrix"),
    "two alphas": (
        layer() | {f"{KEY}.alpha": np.asarray(2.0)},
        settings(),
        "has an alpha, and the metadata has",
    ),
    "no number": (layer() | {f"{KEY}.alpha": np.asarray(np.nan)}, {}, "to_q.alpha is not a number"),
    "other rank": (layer(), settings(r=3), "has rank 2, but the settings beside it say 3"),
    "no rank": (layer(), settings(r=None), "'r' is a required property"),
    "pattern": (layer(), settings(alpha_pattern={"(a+)+$": 3}), "alpha_pattern"),
    "no JSON": (layer(), {"lora_adapter_metadata": "{"}, "is not JSON"),
    "twice": (layer() | {f"{KEY}.lora_down.weight": np.zeros((2, 24))}, {}, "to_q.lora_down.weight twice"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_leave_nothing(source, tmp_path, fault):
    tensors, metadata, words = FAULTS[fault]
    save_file({key: np.asarray(x, np.float32) for key, x in tensors.items()}, tmp_path / FILE, metadata=metadata)
    refused(source, tmp_path, words, [FILE], lora=tmp_path / FILE)


def refused(source: Path, tmp_path: Path, words: str, left: list[str], **options) -> None:
    with pytest.raises(UserError, match=words) as error:
        from_torch(source, tmp_path / "ours", **options)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_places_that_are_refused(wan_folder, source, tmp_path):
    """Two LoRAs, pickles, nothing, and LoRAs of what is no transformer."""
    refused(source, tmp_path, "--lora=.*nowhere does not exist", [], lora=tmp_path / "nowhere")
    place = tmp_path / "place"
    place.mkdir()
    refused(source, tmp_path, "holds no LoRA: there is no adapter_config.json", ["place"], lora=place)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(layer(), place / name)
    refused(source, tmp_path, "there are several LoRAs, .*a.safetensors, .*b.safetensors", ["place"], lora=place)
    (place / "a.bin").touch()
    refused(source, tmp_path, "a.bin is a LoRA, but no file of safetensors", ["place"], lora=place / "a.bin")
    (place / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 2, "peft_type": "LORA"}')
    refused(source, tmp_path, "adapter_model.safetensors is missing", ["place"], lora=place)
    one, encoder, head = place / "a.safetensors", wan_folder / "text_encoder", place / "head.safetensors"
    refused(
        encoder,
        tmp_path,
        "is a LoRA of a text_encoder: only one of a transformer",
        ["place"],
        lora=one,
    )
    save_file({"weight": np.zeros((1, 768)), "bias": np.zeros(1)}, head)
    refused(
        head,
        tmp_path,
        "is for a transformer: .* holds none",
        ["place"],
        lora=one,
    )
    beside = shutil.copytree(source, tmp_path / "beside")
    save_file(layer(), beside / FILE)
    refused(beside, tmp_path, "there are several LoRAs", ["beside", "place"], lora=one)
    (beside / "config.json").rename(tmp_path / "config.json")
    refused(
        beside,
        tmp_path,
        "beside is a LoRA alone: convert the model that it changes",
        ["beside", "config.json", "place"],
    )
    (tmp_path / "config.json").rename(beside / "config.json")
    (beside / FILE).rename(beside / "lora.bin")
    refused(beside, tmp_path, "lora.bin is a LoRA, but no file of safetensors", ["beside", "place"])
    (beside / "lora.bin").unlink()
    (beside / "lora.safetensors").symlink_to(place / "a.safetensors")
    refused(beside, tmp_path, "outside itself", ["beside", "place"])
