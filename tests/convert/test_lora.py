"""A student that is an adapter, written as a LoRA and loaded by the libraries that it is for; adapters cut out of whole
students.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import stock
import stock_wan
import torch
from absl import flags
from absl.testing import flagsaver
from diffusers import CogVideoXPipeline, WanPipeline
from flax.traverse_util import flatten_dict, unflatten_dict
from folders import relative
from safetensors import safe_open
from safetensors.numpy import load_file

from dollar_jax import checkpoint, pipeline
from dollar_jax.config import lora as lora_config
from dollar_jax.convert import __main__ as program
from dollar_jax.convert import wan_experts
from dollar_jax.convert.extract_lora import extract_lora
from dollar_jax.convert.from_torch import from_torch
from dollar_jax.convert.tensors import open_folder
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.diffusion import make_schedule
from dollar_jax.errors import UserError
from dollar_jax.models import lora

PROMPTS = ["a cat asleep on a piano", "a red ring"]
SIZE = {"frames": 9, "height": 16, "width": 32, "fps": 8, "independent_chunk": 0}
SCHEDULES = {
    "cogvideox": {},  # the teacher's
    "wan": {"kind": "flow", "steps": 1000, "shift": 5.0, "spacing": "stretched"},
}
RANK, ALPHA = 3, 7.5
TARGETS = (*lora_config().targets, "*time_project")
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


def make_student(teacher: Path, folder: Path, alpha: float, targets=TARGETS, schedule=None) -> dict[str, Any]:
    """Writes a student of 4 steps, as the stage `distill` does, and returns its adapter."""
    card = checkpoint.read_card(teacher)
    base, rng, flat = flatten_dict(checkpoint.open_component(teacher, card["transformer"]), sep="/"), RNG(2), {}
    for layer in lora.adaptable(checkpoint.network_of(card["transformer"]), targets):
        *stack, rows, columns = base[f"{layer}/kernel"].shape
        flat[f"{layer}/lora_a"] = 0.3 * rng.normal(size=(*stack, rows, RANK)).astype(np.float32)
        flat[f"{layer}/lora_b"] = 0.2 * rng.normal(size=(*stack, RANK, columns)).astype(np.float32)
    adapter = unflatten_dict(flat, sep="/")
    brought = checkpoint.bring(card, teacher, folder, (*checkpoint.SHARED, "transformer"))
    checkpoint.save_params(folder / "adapter", adapter)
    fields = {"base": "transformer", "sha256": checkpoint.digest(teacher, card["transformer"]), "rank": RANK}
    schedule = schedule or card["schedule"]
    card |= brought | {
        "role": "student",
        "transformer": card["transformer"] | {"path": "adapter", "item": "", "lora": fields | {"alpha": alpha}},
        "schedule": schedule,
        "times": list(make_schedule(**schedule).spaced(4)),
        "sampler": "ddim",
        "guidance": 0.0,
    }
    card.pop("low_guidance", None)
    checkpoint.write_card(folder, card)
    return adapter


def teacher_of(source: Path, folder: Path) -> Path:
    from_torch(source, folder / "teacher")
    checkpoint.write_card(folder / "teacher", pipeline.at_size(checkpoint.read_card(folder / "teacher"), SIZE))
    return folder / "teacher"


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


def pipe_of_readme(folder: Path, monkeypatch) -> Any:
    """What the README's code loads in the folder above, but in float32."""
    monkeypatch.chdir(folder.parent)
    code = (folder / "README.md").read_text().split("```")[1].removeprefix("python\n")
    lines = code.replace("torch.bfloat16", "torch.float32").splitlines()
    assert lines[-1].startswith("video = pipe(prompt, num_inference_steps=4, guidance_scale=1.0")
    names = {}
    exec("\n".join(lines[:-1]), names)
    pipe = names["pipe"]
    pipe.set_progress_bar_config(disable=True)
    return pipe


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


def orthonormal(rng, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(rows, columns)))[0]


@pytest.fixture(scope="module")
def whole(wan, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with a teacher and a student whose layers changed by matrices with the singular values 0.4 and 0.3, and
    whose norms changed too; and the changes.
    """
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(wan[1], folder / "teacher")
    card, rng, changes = checkpoint.read_card(folder / "teacher"), RNG(3), {}
    flat = flatten_dict(open_arrays(folder / "teacher"), sep="/")
    for layer in lora.adaptable(checkpoint.network_of(card["transformer"]), lora_config().targets):
        blocks, rows, columns = flat[f"{layer}/kernel"].shape
        each = (orthonormal(rng, rows, 2) * [0.4, 0.3] @ orthonormal(rng, columns, 2).T for _ in range(blocks))
        changes[f"{layer}/kernel"] = np.stack(list(each)).astype(np.float32)
    changes["blocks/cross_norm/scale"] = np.full(flat["blocks/cross_norm/scale"].shape, 0.1, np.float32)
    new = {path: x + changes.get(path, 0) for path, x in flat.items()}
    brought = checkpoint.bring(card, folder / "teacher", folder / "student")
    checkpoint.save_params(folder / "student" / "all", unflatten_dict(new, sep="/"))
    student = {"role": "student", "transformer": card["transformer"] | {"path": "all"}}
    checkpoint.write_card(folder / "student", card | brought | student)
    return folder, changes


def layers_of(folder: Path) -> dict[str, np.ndarray]:
    """The parameters that a student samples with."""
    _, params = checkpoint.load_component(folder, checkpoint.read_card(folder)["transformer"])
    base = {path: x for path, x in flatten_dict(params, sep="/").items() if "lora_" not in path}
    adapter = {path: x for path, x in flatten_dict(params, sep="/").items() if path.endswith(("lora_a", "lora_b"))}
    return flatten_dict(lora.merge(unflatten_dict(base, sep="/"), unflatten_dict(adapter, sep="/")), sep="/")


def test_extraction_keeps_the_largest_singular_values(whole, tmp_path, capsys):
    """Of 0.4 and 0.3 rank 1 keeps .16 / .25 = 64 % of the square, rank 2 all."""
    folder, changes = whole
    layers = [path for path in changes if path.endswith("kernel")]
    before, after = (flatten_dict(open_arrays(folder / name), sep="/") for name in ("teacher", "student"))
    for rank, share in ((1, 0.64), (2, 1.0)):
        found = extract_lora(folder / "student", folder / "teacher", tmp_path / f"{rank}", rank, lora_config().targets)
        for path in layers:
            assert found[path].all == pytest.approx(2 * 0.25, rel=1e-4)
            assert found[path].kept == pytest.approx(2 * 0.25 * share, rel=1e-4)
        made = layers_of(tmp_path / f"{rank}")
        for path in layers:
            left = np.linalg.svd(after[path] - made[path], compute_uv=False)
            np.testing.assert_allclose(left[:, 0], 0.3 if rank == 1 else 0, atol=1e-4)
        np.testing.assert_array_equal(made["blocks/cross_norm/scale"], before["blocks/cross_norm/scale"])
    norm = 0.01 * 2 * 24  # squares of the norms' changes: two blocks of 24
    covered = 0.5 * len(layers)
    lines = capsys.readouterr().out.splitlines()
    assert found["blocks/cross_norm/scale"].all == pytest.approx(norm, rel=1e-4)
    assert f"without {norm / (covered + norm):.2%}: blocks/cross_norm/scale" in " ".join(" ".join(lines).split())
    assert lines[-1].split() == ["all", "100.00%", f"{covered / (covered + norm):.2%}"]


def open_arrays(folder: Path) -> dict[str, Any]:
    lazily = checkpoint.open_component(folder, checkpoint.read_card(folder)["transformer"])
    return jax.tree.map(lambda x: x.read(), lazily)


@flagsaver.flagsaver
def test_extraction_at_full_rank_is_the_student(whole, tmp_path):
    """All that the targets cover; from the command on, and to_torch takes the result."""
    folder, _ = whole
    shutil.copytree(folder / "student", tmp_path / "student")
    params = open_arrays(folder / "student")
    rng = RNG(4)
    expand = params["blocks"]["expand"]["kernel"]
    params["blocks"]["expand"]["kernel"] = expand + 0.1 * rng.normal(size=expand.shape).astype(np.float32)
    checkpoint.save_params(tmp_path / "student" / "all", params)
    flags.FLAGS(["convert", "--rank=24", "--targets=*/expand,*attention/query"])
    program.main("extract_lora", *map(str, (tmp_path / "student", folder / "teacher", tmp_path / "out")))
    made = layers_of(tmp_path / "out")
    for path in ("blocks/expand/kernel", "blocks/self_attention/query/kernel"):
        assert relative(made[path], flatten_dict(params, sep="/")[path]) < 1e-5
    to_torch(tmp_path / "out", tmp_path / "OUT")
    assert len(load_file(tmp_path / "OUT" / FILE)) == 2 * 2 * 3
    card = checkpoint.read_card(tmp_path / "out")
    assert card["transformer"]["lora"] | {"sha256": ""} == {"base": "transformer", "sha256": "", "rank": 24, "alpha": 0}
    assert card["role"] == "student"


def test_extraction_refuses(whole, case, tmp_path):
    folder, _ = whole
    student, teacher, targets = folder / "student", folder / "teacher", lora_config().targets
    for arguments, words in {
        (case.student, teacher, 2): "is an adapter already",
        (student, case.student, 2): "is an adapter already",
        (student, teacher, 25): r"--rank=25 does not fit blocks/contract, a matrix of \(32, 24\)",
        (teacher, teacher, 2): "have the same weights: there is nothing to extract",
    }.items():
        with pytest.raises(UserError, match=words) as error:
            extract_lora(*arguments[:2], tmp_path / "out", arguments[2], targets)
        assert "\n" not in str(error.value)
    if case.family == "cogvideox":
        with pytest.raises(UserError, match="are different networks"):
            extract_lora(student, case.teacher, tmp_path / "out", 2, targets)
    with pytest.raises(UserError, match="'\\*/no' matches no layer"):
        extract_lora(student, teacher, tmp_path / "out", 2, ["*/no"])
    assert not list(tmp_path.iterdir())
