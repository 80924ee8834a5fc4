"""Students that are adapters: only they move and are saved, on one base that is checked wherever they meet it again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_adapted
import toy_pipeline
from merged import merge
from ml_collections import ConfigDict

from configs import shapes
from dollar_jax import checkpoint
from dollar_jax.config import set_named
from dollar_jax.errors import UserError
from dollar_jax.importing import trust
from dollar_jax.pipeline import draw_noise, load
from dollar_jax.sharding import make_mesh
from dollar_jax.stages import distill as distill_module
from dollar_jax.stages import report
from dollar_jax.stages.distill import distill
from dollar_jax.stages.encode import encode

trust(["toy_adapted"])
CAPTIONS = "a red ring", "a blue cross", "a green square", "a red cross"
NETWORK = toy_adapted.transformer()
BASE = NETWORK.init(jax.random.key(3))


def make_teacher(folder, base=BASE):
    """A toy pipeline whose transformer takes adapters."""
    toy_pipeline.write(folder, CAPTIONS)
    checkpoint.save_params(folder / "transformer", base)
    part = {"architecture": "toy_adapted:transformer", "config": {}, "path": "transformer", "item": ""}
    checkpoint.write_card(folder, checkpoint.read_card(folder) | {"role": "teacher", "transformer": part})
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    make_teacher(folder / "teacher")
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS))
    return folder


def make_config(work, iterations=4, **adapters):
    """VSD and a latent reward from prompts alone; `adapters` are fields of `config.lora`."""
    config = shapes.get_config()
    config.teacher.path, config.data.prompts = str(work / "teacher"), str(work / "prompts.txt")
    config.video.update(toy_pipeline.CARD["video"])
    loop = {"iterations": iterations, "save_every": 2, "log_every": 1, "batch_size": 2, "show_every": 0, "keep": 9}
    config.generator.update(loop | {"times": (499, 999), "sampler": "renoise"})
    for part in (config.generator, config.fake_score, config.reward):
        part.optimizer.update({"warmup": 0, "decay_from": 1.0, "learning_rate": 1e-2})
    set_named(config.generator.objectives, {"consistency": 0.0})
    config.fake_score.updates, config.reward.batch_size, config.held_out.videos_per_caption = 1, 2, 0
    config.students = ConfigDict({"student": {"start_from": ""}})
    config.lora.update({"rank": 2, "fake_score_rank": 3, "alpha": 5.0, "targets": ("expand", "contract")} | adapters)
    return config


def run(config, workdir):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        encode(config, workdir, mesh)
        distill(config, workdir, mesh)
    return workdir / "student"


@pytest.fixture(scope="module")
def student(work):
    return run(make_config(work), work / "W")


def items(folder, step, names=("student", "ema", "fake_score")):
    part = checkpoint.read_card(folder)["transformer"] | {"path": f"checkpoints/{step}"}
    return {name: checkpoint.load_stored(folder, part | {"item": name}) for name in names}


def equal(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), one, other))


def test_only_adapters_are_trained_and_saved(student, work):
    """A and B of two layers, of 7 x 6 and of 6 x 4."""
    early, late = items(student, 2), items(student, 4)
    for name, rank in {"student": 2, "ema": 2, "fake_score": 3}.items():
        leaves = jax.tree.leaves(late[name])
        assert sum(x.size for x in leaves) == rank * (7 + 6 + 6 + 4)
        assert all(x.dtype == jnp.float32 for x in leaves)
        assert not any(bool((a == b).all()) for a, b in zip(leaves, jax.tree.leaves(early[name]), strict=True))
    lines = (student / "parameters.txt").read_text()
    assert "lora_a" in lines
    assert "kernel" not in lines.partition("reward_model")[0]
    card = checkpoint.read_card(student)
    base = checkpoint.base_of(card["transformer"])
    assert equal(checkpoint.load_component(student, base)[1], BASE)
    assert checkpoint.digest(student, base) == card["transformer"]["lora"]["sha256"]
    file = next(path for path in (work / "teacher" / "transformer").rglob("*") if path.is_file())
    assert file.samefile(student / file.relative_to(work / "teacher"))  # a link: it takes no space


def test_it_is_sampled_as_the_base_with_its_adapter(student, work):
    model, adapter, apply = load(student), items(student, 4)["ema"], jax.jit(NETWORK.apply)
    _, params = model.networks["transformer"]
    x, times = draw_noise(toy_pipeline.CARD, 0, 1, 2)[0], jnp.full(2, 500.0)
    told = model.encode_text(CAPTIONS[:2])
    made = apply(params, x, times, told)
    wanted = apply(merge(BASE, adapter, 5.0), x, times, told)
    np.testing.assert_allclose(made, wanted, atol=1e-5)
    assert np.abs(made - apply(BASE, x, times, told)).max() > 1e-3
    for strength in (0.0, 0.5):
        _, params = load(student, ("transformer",), lora_scale=strength).networks["transformer"]
        wanted = apply(merge(BASE, adapter, strength * 5.0 or 1e-9), x, times, told)
        np.testing.assert_allclose(apply(params, x, times, told), wanted, atol=1e-5)
    with pytest.raises(UserError, match="has all weights of its own"):
        load(work / "teacher", ("transformer",), lora_scale=0.5)


def test_the_report_has_the_base_in_memory_once(student, work):
    config = make_config(work)
    teacher, *_ = report._teacher(config, work / "W", CAPTIONS[:1])
    entries = dict(report._entries(config, work / "W", teacher))
    base, adapted = (entries[name].pipeline.networks["transformer"][1] for name in ("teacher", "student"))
    arrays = {id(leaf) for leaf in jax.tree.leaves(adapted)}
    assert all(id(leaf) in arrays for leaf in jax.tree.leaves(base))
    assert len(arrays) > len(jax.tree.leaves(base))


@pytest.mark.parametrize(("rank", "keep"), [(2, "bfloat16"), (0, None)])
def test_the_teacher_comes_after_the_text_encoder_and_a_base_in_the_dtype_of_the_computation(
    rank, keep, work, tmp_path, monkeypatch
):
    """A 14B in float32, or beside umT5, fills a GPU. Weights of its own begin as all that is stored."""
    calls = []

    def noted(name):
        function = getattr(distill_module, name)
        return lambda *args, **options: calls.append((name, options.get("keep"))) or function(*args, **options)

    for name in ("open_view", "load_component"):
        monkeypatch.setattr(distill_module, name, noted(name))
    config = make_config(work, iterations=0, rank=rank)
    config.dtype = "bfloat16"
    run(config, tmp_path)
    assert calls == [("open_view", None), ("load_component", keep)]


def test_a_run_that_stopped_halfway_goes_on_to_the_bit(student, work):
    halves = work / "halves"
    halves.mkdir()
    (halves / "encoded").symlink_to(work / "W" / "encoded")
    shutil.copytree(student, halves / "student")
    shutil.rmtree(halves / "student/checkpoints/4")
    assert equal(items(run(make_config(work), halves), 4), items(student, 4))


def test_a_student_starts_from_an_earlier_one(student, work):
    config = make_config(work, iterations=0)
    config.students.later = {"start_from": "student", "generator": {"iterations": 0}}
    config.students.student.generator = {"iterations": 4}
    run(config, work / "W")
    first, later = items(student, 4), items(work / "W" / "later", 0)
    assert equal(later, {"student": first["ema"], "ema": first["ema"], "fake_score": first["fake_score"]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": {"rank": 4}}, r"student has lora\.rank 2, this one 4: give both the same"),
        ({"lora": {"rank": 0}}, r"student has lora\.rank 2, this one 0"),
        ({"lora": {"alpha": 1.0}}, r"student has lora\.alpha 5\.0, this one 1\.0"),
        ({"generator": {"heterogeneous": True}}, "student has prediction_type v, this one x0"),
    ],
)
def test_a_student_starts_only_from_one_of_its_form(student, work, tmp_path, changes, words):
    """Else its parameters would mean something else."""
    workdir = tmp_path / "W"
    shutil.copytree(student.parent, workdir, ignore=shutil.ignore_patterns("later"))
    config = make_config(work)
    config.students.later = {"start_from": "student", **changes}
    with pytest.raises(UserError, match=words):
        run(config, workdir)


def test_another_base_or_another_form_is_refused(student, work, tmp_path):
    copy = tmp_path / "W"
    shutil.copytree(work / "W", copy)
    for changes, words in {
        (("rank", 4),): r"begun with lora.rank=2, alpha=5, not lora.rank=4, alpha=5",
        (("alpha", 2.0),): r"not lora.rank=2, alpha=2",
        (("rank", 0),): r"begun with lora.rank=2, alpha=5, not all weights",
    }.items():
        with pytest.raises(UserError, match=words):
            run(make_config(work, 6, **dict(changes)), copy)
    make_teacher(tmp_path / "teacher", jax.tree.map(lambda x: x + 1e-3, BASE))
    other = make_config(work, 6)
    other.teacher.path = str(tmp_path / "teacher")
    with pytest.raises(UserError, match="begun on another base than"):
        run(other, copy)

    shutil.rmtree(copy / "student" / "transformer")
    shutil.copytree(tmp_path / "teacher" / "transformer", copy / "student" / "transformer")
    with pytest.raises(UserError, match="not the base that the adapter was trained on"):
        load(copy / "student")

    adapted = make_config(work)
    adapted.teacher.path = str(student)
    with pytest.raises(UserError, match="is an adapter on another network: merge it"):
        run(adapted, tmp_path / "new")


def test_its_gradient_on_a_mesh_is_that_on_one_device():
    """Over data, fsdp and context. A is split by rows, B by columns: the rank is too small."""
    script = Path(__file__).parent / "helpers" / "adapter_on_mesh.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    differences, axes = json.loads(done.stdout)
    assert len(differences) == 2 * 10  # self-attention, cross-attention and MLP
    assert max(differences.values()) < 1e-5
    assert all(axis == (-2 if path.endswith("lora_a") else -1) for path, axis in axes.items())
