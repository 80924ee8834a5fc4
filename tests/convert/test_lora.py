"""A student that is an adapter, written as a LoRA and loaded by the libraries that it is for."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import stock
import stock_wan
import torch
from compare import relative
from diffusers import CogVideoXPipeline, WanPipeline
from flax.traverse_util import flatten_dict
from lora_student import RANK, SIZE, make_student, pipe_of_readme, teacher_of
from safetensors import safe_open
from safetensors.numpy import load_file

from dollar_jax import checkpoint, pipeline
from dollar_jax.convert import wan_experts
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.tensors import open_folder
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.errors import UserError
from dollar_jax.models import lora

PROMPTS = ["a cat asleep on a piano", "a red ring"]
SCHEDULES = {
    "cogvideox": {},  # the teacher's
    "wan": {"kind": "flow", "steps": 1000, "shift": 5.0, "spacing": "stretched"},
}
ALPHA = 7.5
RNG = np.random.default_rng
FILE = "pytorch_lora_weights.safetensors"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch and diffusers among themselves
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Case(NamedTuple):
    """A stock folder, our teacher from it, and a student of it with a random adapter."""

    family: str
    stock: Path
    teacher: Path
    student: Path
    adapter: dict[str, Any]


@pytest.fixture(scope="module")
def wan(wan_folder, tmp_path_factory) -> tuple[Path, Path]:
    """A stock pipeline and ours."""
    return wan_folder, teacher_of(wan_folder, tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def cogvideox(plain, tmp_path_factory) -> tuple[Path, Path]:
    return plain, teacher_of(plain, tmp_path_factory.mktemp("cogvideox"))


@pytest.fixture(scope="module", params=SCHEDULES)
def case(request) -> Case:
    family = request.param
    source, teacher = request.getfixturevalue(family)
    folder = teacher.parent
    adapter = make_student(folder / "teacher", folder / "student", ALPHA, schedule=SCHEDULES[family])
    (folder / "BASE").symlink_to(source)
    to_torch(folder / "student", folder / "OUT")
    to_torch(folder / "student", folder / "merged", merge=True)
    return Case(family, source, folder / "teacher", folder / "student", adapter)


def stock_latents(pipe: CogVideoXPipeline | WanPipeline, noise: np.ndarray) -> np.ndarray:
    """What a stock pipeline makes in 4 steps of noise [b f h w c], in the same layout."""
    order = (0, 1, 4, 2, 3) if isinstance(pipe, CogVideoXPipeline) else (0, 4, 1, 2, 3)
    sizes = {"num_frames": SIZE["frames"], "height": SIZE["height"], "width": SIZE["width"]}
    with torch.inference_mode():
        latents = pipe(
            PROMPTS,
            num_inference_steps=4,
            guidance_scale=1.0,
            **sizes,
            max_sequence_length=stock.TEXT_LENGTH if isinstance(pipe, CogVideoXPipeline) else 512,
            latents=torch.tensor(noise).permute(order),
            output_type="latent",
        ).frames
    return latents.permute(np.argsort(order).tolist()).numpy()


def test_a_stock_pipeline_with_the_lora_makes_our_latents(case, monkeypatch):
    """By the README's code; with alpha unlike the rank, whole and at half strength, and merged."""
    model = pipeline.load(case.student)
    noise = RNG(0).normal(size=(2, *model.card["latent_shape"])).astype(np.float32)
    told, (_, keys) = model.encode_text(PROMPTS), pipeline.draw_noise(model.card, 0, 2, 1)
    _, base = checkpoint.load_component(case.teacher, checkpoint.read_card(case.teacher)["transformer"])

    def ours(alpha):
        params = lora.attach(base, case.adapter, alpha)
        return np.asarray(model.sampler(params, noise, told, None, keys, model.times(4), 0.0))

    pipe = pipe_of_readme(case.student.with_name("OUT"), monkeypatch)
    whole, half, none = ours(ALPHA), ours(ALPHA / 2), ours(1e-9)
    np.testing.assert_array_equal(
        whole, model.sampler(model.networks["transformer"][1], noise, told, None, keys, model.times(4), 0.0)
    )
    assert relative(stock_latents(pipe, noise), whole) < 1e-3
    pipe.set_adapters("student", 0.5)
    assert relative(stock_latents(pipe, noise), half) < 1e-3
    assert min(relative(half, whole), relative(half, none), relative(whole, none)) > 0.05
    again = type(pipe).from_pretrained(case.student.with_name("merged"), torch_dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    assert relative(stock_latents(again, noise), whole) < 1e-3


def test_the_merged_folder_has_w_plus_a_b_s(case):
    ours, theirs = (
        open_folder(case.student.with_name("merged") / "transformer"),
        open_folder(case.stock / "transformer"),
    )
    native = load_file(case.student.with_name("OUT") / FILE)
    for key in theirs:
        name = f"transformer.{key.removesuffix('.weight')}"
        wanted = theirs[key]
        if f"{name}.lora_A.weight" in native:
            wanted = wanted + native.pop(f"{name}.lora_B.weight") @ native.pop(f"{name}.lora_A.weight")
        np.testing.assert_allclose(ours[key], wanted, rtol=0, atol=1e-6, err_msg=key)
    assert not native


def test_the_file_says_what_peft_wants(case):
    """One rank, which is alpha, and no field that an older peft would refuse."""
    with safe_open(case.student.with_name("OUT") / FILE, "np") as file:
        metadata, keys = file.metadata(), list(file.keys())
    assert metadata["format"] == "pt"
    fields = json.loads(metadata["lora_adapter_metadata"])
    modules = {key.removeprefix("transformer.").rsplit(".", 2)[0] for key in keys}
    assert fields == {
        "transformer.r": RANK,
        "transformer.lora_alpha": RANK,
        "transformer.target_modules": sorted(modules),
    }
    attention = {"cogvideox": 4, "wan": 8}[case.family]
    assert len(modules) == 2 * (attention + 2) + 1
    adapter = flatten_dict(case.adapter, sep="/")
    first = {"cogvideox": "transformer_blocks.0.attn1.to_q", "wan": "blocks.0.attn1.to_q"}[case.family]
    path = {"cogvideox": "blocks/attention/query", "wan": "blocks/self_attention/query"}[case.family]
    tensors = load_file(case.student.with_name("OUT") / FILE)
    np.testing.assert_array_equal(tensors[f"transformer.{first}.lora_A.weight"], adapter[f"{path}/lora_a"][0].T)
    folded = adapter[f"{path}/lora_b"][0].T * (ALPHA / RANK)
    np.testing.assert_allclose(tensors[f"transformer.{first}.lora_B.weight"], folded, rtol=1e-6)


def test_comfyui_gets_the_same_in_the_names_of_the_authors(case):
    folder = case.student.with_name("OUT") / "comfyui"
    if case.family == "cogvideox":
        assert not folder.exists()
        return
    (path,) = folder.iterdir()
    tensors = load_file(path)
    assert {re.sub(r"\d+", "N", key) for key in tensors} == {
        f"diffusion_model.{layer}.{ending}"
        for layer in (
            *(f"blocks.N.{kind}_attn.{name}" for kind in ("self", "cross") for name in "qkvo"),
            "blocks.N.ffn.N",
            "time_embedding.N",
        )
        for ending in ("lora_down.weight", "lora_up.weight", "alpha")
    } - {"diffusion_model.time_embedding.N.alpha"}
    assert {float(x) for key, x in tensors.items() if key.endswith("alpha")} == {RANK}
    renamed = WanPipeline.lora_state_dict(path)
    native = load_file(case.student.with_name("OUT") / FILE)
    assert renamed.keys() == native.keys()
    for key, value in renamed.items():
        np.testing.assert_array_equal(value.numpy(), native[key])


def test_from_torch_takes_the_files_back(case, tmp_path):
    """Each, merged by us into the stock transformer, is what to_torch merges."""
    merged = open_folder(case.student.with_name("merged") / "transformer")
    out = case.student.with_name("OUT")
    for number, file in enumerate([out, *(out / "comfyui").glob("*")]):
        card = from_torch(case.stock / "transformer", tmp_path / f"{number}", lora=file)
        assert len(card["merged"]) == 1
        to_torch(tmp_path / f"{number}", tmp_path / f"back{number}")
        tensors = open_folder(tmp_path / f"back{number}")
        for key in merged:
            np.testing.assert_allclose(tensors[key], merged[key], rtol=0, atol=1e-6, err_msg=key)
    assert number == {"cogvideox": 0, "wan": 1}[case.family]


def test_the_original_names_need_merging(case, tmp_path):
    with pytest.raises(UserError, match="is an adapter: --original needs --merge"):
        to_torch(case.student, tmp_path / "out", original=True)
    with pytest.raises(UserError, match="has no adapter to merge"):
        to_torch(case.teacher, tmp_path / "out", merge=True)
    if case.family == "wan":
        to_torch(case.student, tmp_path / "out", original=True, merge=True)
        merged = open_folder(case.student.with_name("merged") / "transformer")
        np.testing.assert_array_equal(
            load_file(tmp_path / "out" / "model.safetensors")["blocks.1.self_attn.q.weight"],
            merged["blocks.1.attn1.to_q.weight"],
        )


def test_what_can_have_no_lora_there_is_refused(case, tmp_path):
    make_student(case.teacher, tmp_path / "student", 0.0, ["patch_embed", "*/expand"])
    with pytest.raises(UserError, match=r"patch_embed is no linear layer in the other library.*: use --merge"):
        to_torch(tmp_path / "student", tmp_path / "out")
    to_torch(tmp_path / "student", tmp_path / "merged", merge=True)
    key = {"cogvideox": "patch_embed.proj.weight", "wan": "patch_embedding.weight"}[case.family]
    before, after = (open_folder(folder / "transformer")[key] for folder in (case.stock, tmp_path / "merged"))
    assert relative(before, after) > 0.1
    shutil.rmtree(tmp_path / "student" / "transformer")
    shutil.copytree(case.teacher / "vae", tmp_path / "student" / "transformer")
    with pytest.raises(UserError, match="is not the base that the adapter was trained on"):
        to_torch(tmp_path / "student", tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


def test_a_scheduler_of_ours_is_imported_from_the_folder(wan, tmp_path, monkeypatch):
    """Where no stock one samples like the student; the README says whose LoRA the base has, and where it is from."""
    stock_folder, teacher = wan
    make_student(teacher, tmp_path / "student", 0.0, schedule={"kind": "flow", "shift": 5.0, "spacing": "trailing"})
    card = checkpoint.read_card(tmp_path / "student")
    origin = {"hub": {"repository": "some/model", "commit": "0a" * 20}}
    merged = {"merged": [{"file": 'a"); import os; ("', "sha256": "0b" * 32}]}
    checkpoint.write_card(tmp_path / "student", card | origin | merged)
    to_torch(tmp_path / "student", tmp_path / "named")
    code = (tmp_path / "named" / "README.md").read_text()
    assert f'from_pretrained("some/model", revision="{"0a" * 20}", torch_dtype=torch.bfloat16)' in code
    assert f"The base is merged with the LoRA of SHA-256 `{'0b' * 32}`." in code
    imported = [node for node in ast.walk(ast.parse(code.split("```")[1][7:])) if isinstance(node, ast.Import)]
    assert {name.name for node in imported for name in node.names} == {"sys", "torch"}
    checkpoint.write_card(tmp_path / "student", card)
    to_torch(tmp_path / "student", tmp_path / "OUT")
    (tmp_path / "BASE").symlink_to(stock_folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "dollar_scheduler", raising=False)
    scheduler = pipe_of_readme(tmp_path / "OUT", monkeypatch).scheduler
    assert type(scheduler).__name__ == "DollarScheduler"
    assert scheduler.config.times == sorted(card["times"], reverse=True)


def test_two_experts(wan, tmp_path, monkeypatch):
    """One file for each, loaded by the README's code; the whole is what diffusers makes of them."""
    stock_folder, teacher = wan
    shutil.copytree(stock_folder, tmp_path / "BASE")
    stock_wan.make_transformer().save_pretrained(tmp_path / "BASE" / "transformer_2")
    index = json.loads((tmp_path / "BASE" / "model_index.json").read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.875}
    (tmp_path / "BASE" / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(teacher, tmp_path / "teacher")
    card, both = checkpoint.read_card(teacher), {}
    for expert, folder in wan_experts.FOLDERS.items():
        alone = from_torch(tmp_path / "BASE" / expert, tmp_path / folder)
        both[folder] = checkpoint.open_component(tmp_path / folder, alone["transformer"])
    checkpoint.save_params(tmp_path / "teacher" / "transformer", both)
    part = card["transformer"] | {"architecture": "wan_experts"}
    part["config"] = part["config"] | {"boundary": 875.0}
    checkpoint.write_card(tmp_path / "teacher", card | {"transformer": part})
    adapter = make_student(tmp_path / "teacher", tmp_path / "student", ALPHA, schedule=SCHEDULES["wan"])
    assert adapter.keys() == {"high", "low"}
    to_torch(tmp_path / "student", tmp_path / "OUT")
    to_torch(tmp_path / "student", tmp_path / "merged", merge=True)
    assert {str(path.relative_to(tmp_path / "OUT")) for path in (tmp_path / "OUT").rglob("*.safetensors")} == {
        FILE,
        f"transformer_2/{FILE}",
        "comfyui/transformer.safetensors",
        "comfyui/transformer_2.safetensors",
    }
    pipe = pipe_of_readme(tmp_path / "OUT", monkeypatch)
    names = ["transformer", "transformer_2"]
    pipe.fuse_lora(components=names)
    pipe.unload_lora_weights()
    for name in names:
        fused, ours = getattr(pipe, name).state_dict(), open_folder(tmp_path / "merged" / name)
        assert fused.keys() == ours.keys()
        for key, value in fused.items():
            np.testing.assert_allclose(ours[key], value.numpy(), rtol=0, atol=1e-6, err_msg=f"{name}.{key}")
    low = load_file(tmp_path / "OUT" / "comfyui" / "transformer_2.safetensors")
    np.testing.assert_allclose(
        low["diffusion_model.blocks.1.ffn.2.lora_up.weight"],
        adapter["low"]["blocks"]["contract"]["lora_b"][1].T * (ALPHA / RANK),
        rtol=1e-6,
    )
