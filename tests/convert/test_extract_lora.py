"""Adapters cut out of students with weights of their own."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from compare import relative
from diffusers import WanPipeline
from flax.traverse_util import flatten_dict, unflatten_dict
from lora_student import make_student, teacher_of
from merged import merge
from safetensors.numpy import load_file

from dollar_jax import checkpoint
from dollar_jax.config import lora as lora_config
from dollar_jax.convert import __main__ as program
from dollar_jax.convert.extract_lora import extract_lora
from dollar_jax.convert.to_torch import to_torch
from dollar_jax.errors import UserError
from dollar_jax.models import lora

FILE = "pytorch_lora_weights.safetensors"
RNG = np.random.default_rng


def orthonormal(rng, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(rows, columns)))[0]


@pytest.fixture(scope="module")
def whole(wan_folder, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with a teacher and a student whose layers changed by matrices with the singular values 0.4 and 0.3, and
    whose norms changed too; and the changes.
    """
    folder = tmp_path_factory.mktemp("whole")
    teacher_of(wan_folder, folder)
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
    return flatten_dict(merge(unflatten_dict(base, sep="/"), unflatten_dict(adapter, sep="/")), sep="/")


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


def test_by_default_every_layer_with_a_lora_there_gets_an_adapter(whole, tmp_path):
    """All but the patches, which are a convolution there. Narrow layers are filled up with zeros."""
    folder, _ = whole
    shutil.copytree(folder / "student", tmp_path / "student")
    flat = flatten_dict(open_arrays(folder / "student"), sep="/")
    rng, linears = RNG(5), checkpoint.network_of(checkpoint.read_card(folder / "student")["transformer"]).linears
    for layer in linears:
        flat[f"{layer}/kernel"] = flat[f"{layer}/kernel"] + rng.normal(size=flat[f"{layer}/kernel"].shape, scale=0.1)
    checkpoint.save_params(tmp_path / "student" / "all", unflatten_dict(flat, sep="/"))
    found = extract_lora(tmp_path / "student", folder / "teacher", tmp_path / "out", 24, [])
    assert {layer for layer in linears if found[f"{layer}/kernel"].kept} == set(linears) - {"patch_embed"}
    made = layers_of(tmp_path / "out")
    for layer in set(linears) - {"patch_embed"}:
        assert relative(made[f"{layer}/kernel"], flat[f"{layer}/kernel"]) < 1e-5
    to_torch(tmp_path / "out", tmp_path / "OUT")
    native = load_file(tmp_path / "OUT" / FILE)
    assert {"proj_out", "condition_embedder.time_proj", "condition_embedder.text_embedder.linear_1"} <= {
        key.removeprefix("transformer.").rpartition(".lora_")[0] for key in native
    }
    renamed = WanPipeline.lora_state_dict(tmp_path / "OUT" / "comfyui" / "transformer.safetensors")
    assert renamed.keys() == native.keys()
    for key, value in renamed.items():
        np.testing.assert_array_equal(value.numpy(), native[key])


def test_extraction_refuses(whole, tmp_path_factory, tmp_path):
    folder, _ = whole
    adapter, other = (tmp_path_factory.mktemp("other") / name for name in ("adapter", "other"))
    make_student(folder / "teacher", adapter, 0.0)
    shutil.copytree(folder / "teacher", other)
    card = checkpoint.read_card(other)
    part = card["transformer"] | {"config": card["transformer"]["config"] | {"num_attention_heads": 4}}
    checkpoint.write_card(other, card | {"transformer": part})
    student, teacher, targets = folder / "student", folder / "teacher", lora_config().targets
    for arguments, words in {
        (adapter, teacher, 2): "is an adapter already",
        (student, adapter, 2): "is an adapter already",
        (student, other, 2): "are different networks: give the student's own teacher",
        (student, teacher, 25): "--rank=25: the largest of the layers has rank 24",
        (teacher, teacher, 2): "have the same weights: there is nothing to extract",
    }.items():
        with pytest.raises(UserError, match=words) as error:
            extract_lora(*arguments[:2], tmp_path / "out", arguments[2], targets)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="'\\*/no' matches no layer"):
        extract_lora(student, teacher, tmp_path / "out", 2, ["*/no"])
    assert not list(tmp_path.iterdir())
