"""A family from outside the package, from its VAE to a sampled student, and an objective with a network of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy_family
from toy_run import ADVERSARIAL, NEGATIVE, adversarial_config, flow_map_config, make_config

from dollar_jax import checkpoint, metrics
from dollar_jax.check import check
from dollar_jax.config import set_named
from dollar_jax.data.pipeline import batches
from dollar_jax.errors import UserError
from dollar_jax.importing import resolve, trust
from dollar_jax.objectives import used
from dollar_jax.pipeline import draw_noise, load
from dollar_jax.plan.programs import iteration
from dollar_jax.plan.teachers import teacher_card
from dollar_jax.sharding import make_mesh
from dollar_jax.stages.common import encoded_source, video_source
from dollar_jax.stages.distill import make_setup
from dollar_jax.stages.student import student_card, student_config
from dollar_jax.steps.iteration import parts

ROOT = Path(__file__).parents[1]


def run(config, workdir, stages=("vae", "encode", "teacher", "distill")):
    trust(["toy_family"])
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        for stage in stages:
            resolve(stage, "dollar_jax.stages")(config, workdir, mesh)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    run(make_config(), folder)
    return folder


def test_every_stage_trains_its_network(workdir):
    for stage, network in {"vae": "vae", "teacher": "teacher", "student": "student"}.items():
        log = metrics.read(workdir / stage)
        assert len(log) == 6
        assert all(np.isfinite(line["loss"]) and line[f"norm/{network}_update"] > 0 for line in log)
    assert {"loss/consistency", "loss/latent_reward", "loss/fake_score", "loss/reward_model"} <= log[-1].keys()


def test_the_card_says_all_that_the_family_needs(workdir):
    card = checkpoint.read_card(workdir / "student")
    assert card["negative_prompt"] == NEGATIVE
    assert card["times"] == list(toy_family.FOUR)
    assert card["schedule"] == {"kind": "flow", "shift": 5.0}
    assert len(card["vae"]["shift_factor"]) == len(card["vae"]["scaling_factor"]) == toy_family.CHANNELS


def test_latents_have_unit_variance_in_every_channel(workdir):
    source = video_source(make_config())
    latents = load(workdir / "student").encode_video(np.stack([source[i]["video"] for i in range(len(source))]))
    np.testing.assert_allclose(latents.mean((0, 1, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(latents.std((0, 1, 2, 3)), 1, atol=1e-3)


def latents_of(model, **options):
    condition = model.encode_text(["a red ring moving left", "a green square moving up"])
    noise, keys = draw_noise(model.card, 0, 2, 1)
    return np.concatenate([latents for latents, _ in model.videos(condition, noise, keys, **options)])


def test_teacher_and_student_are_sampled(workdir):
    """The teacher in any number of steps and away from any prompt; the student in 4, 2 or 1, without guidance."""
    teacher, student = load(workdir / "teacher"), load(workdir / "student")
    own = latents_of(teacher)
    away = teacher.encode_text([NEGATIVE]), teacher.encode_text([""])
    np.testing.assert_allclose(own, latents_of(teacher, negative=away[0]), atol=1e-6)
    assert np.abs(own - latents_of(teacher, negative=away[1])).max() > 1e-3
    assert np.isfinite(latents_of(teacher, steps=7)).all()
    assert [len(student.times(steps)) for steps in (4, 2, 1)] == [4, 2, 1]
    assert student.times(2) == toy_family.FOUR[1::2]
    for steps in (4, 2, 1):
        found = latents_of(student, steps=steps)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, latents_of(student, steps=steps, negative=away[1]))


def test_the_command_samples_it(workdir, tmp_path):
    """With a negative prompt of the user's own; the network's module is trusted on the command line."""
    (tmp_path / "prompts.txt").write_text("a red ring moving left\n")
    latents = {}
    for words in ("", "a green square"):
        out = tmp_path / (words or "own")
        flags = [f"--negative_prompt={words}"] if words else []
        command = [sys.executable, "-m", "dollar_jax.sample", f"--checkpoint={workdir / 'teacher'}", f"--out={out}"]
        command += [f"--prompts={tmp_path / 'prompts.txt'}", "--trust=toy_family", "--save_latents", *flags]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
        assert done.returncode == 0, done.stderr
        latents[words] = np.load(out / "00000-0.npy")
    assert np.abs(latents[""] - latents["a green square"]).max() > 1e-3


def borrow(source, target):
    """The finished stages before the student, as links."""
    for name in ("vae", "encoded", "teacher"):
        (target / name).symlink_to((source / name).resolve())


def planned(config, workdir):
    """The planner's iteration for the student of a config."""
    config.teacher.path = str(workdir / "teacher")
    config = student_config(config, "student")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return iteration(config, teacher_card(config, ""), mesh)


def test_a_plan_has_it(workdir):
    work = planned(make_config(), workdir)
    names = [program.name for program in work.programs]
    assert names == ["generator", "fake_score", "reward: propose", "reward: decode", "reward"]
    assert work.resident["batch"]["condition"].extra["pooled"].shape == (3 * 4, 3)


# An objective with a network of its own.


@pytest.fixture(scope="module")
def played(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adversarial")
    borrow(workdir, folder)
    run(adversarial_config(), folder, ("distill",))
    return folder


def test_an_objectives_own_network_learns_beside_the_others(played):
    log = metrics.read(played / "student")
    wanted = {"loss/adversarial_own", "logit_gap", f"loss/{ADVERSARIAL}", "norm/adversarial_own_update"}
    assert wanted | {"loss/variational_score", "loss/fake_score"} <= log[-1].keys()
    assert all(line["norm/adversarial_own_update"] > 0 for line in log)
    with ocp.StandardCheckpointer() as reader:
        first, last = (reader.restore(played / "student/checkpoints" / step / "own") for step in ("2", "6"))
        average = reader.restore(played / "student/checkpoints/6/own_ema")
    assert last["adversarial"]["in"].shape == (toy_family.CHANNELS, 7)
    assert not np.array_equal(first["adversarial"]["in"], last["adversarial"]["in"])
    assert not np.array_equal(average["adversarial"]["in"], last["adversarial"]["in"])
    assert checkpoint.read_card(played / "student")["objectives"][ADVERSARIAL] == 0.1


def test_a_plan_counts_it(workdir):
    work = planned(adversarial_config(), workdir)
    assert [(program.name, program.times) for program in work.programs] == [
        ("generator", 1),
        ("fake_score", 2),
        ("adversarial_own", 2),
    ]
    assert {"own", "own_ema", "Adam of adversarial_own"} <= work.resident.keys()
    assert work.resident["own"]["adversarial"]["in"].shape == (toy_family.CHANNELS, 7)


def test_it_moves_the_student_and_the_student_does_not_move_it(workdir):
    """One step each, by hand: the objective's gradient is the student's alone, its loss's that of its network."""
    config = student_config(adversarial_config(), "student")
    set_named(config.generator.objectives, {"variational_score": 0.0})
    card, mesh = checkpoint.read_card(workdir / "teacher"), make_mesh(config.mesh, jax.devices()[:1])
    trust(["toy_family"])
    network, teacher = checkpoint.load_component(workdir / "teacher", card["transformer"])
    batch = next(iter(batches(encoded_source(config, workdir), 4, 0)))
    batch.pop("caption")
    batch = jax.tree.map(jnp.asarray, batch)
    one = jax.tree.map(lambda x: x[:1], batch["condition"])
    with jax.set_mesh(mesh):
        setup = make_setup(config, card, network, one)
        state = setup.init(teacher, jax.random.key(0))
        frozen = {"teacher": teacher, "negative": one, "empty": one}
        by_name = {part.name: jax.jit(part.step) for part in parts(setup)}
        after, _ = by_name["generator"](state, frozen, batch, jax.random.key(1))
        assert unchanged(state.own, after.own)
        assert not unchanged(state.student, after.student)
        after, _ = by_name["adversarial_own"](state, frozen, batch, jax.random.key(1))
    assert unchanged(state.student, after.student)
    assert not unchanged(state.own, after.own)
    assert not unchanged(state.own_ema, after.own_ema)


def test_a_flow_map_is_trained_and_sampled_in_any_number_of_steps(workdir, tmp_path):
    """Its two embeddings of time begin alike, and are told apart; teacher and fake score have one, also where another
    student starts from it.
    """
    borrow(workdir, tmp_path)
    config = flow_map_config()
    config.students.tuned = {"start_from": "student", "generator": {"iterations": 0}}
    run(config, tmp_path, ("distill",))
    log = metrics.read(tmp_path / "student")
    assert {"loss/flow_map", "loss/continuous_consistency", "loss/variational_score"} <= log[-1].keys()
    assert all(np.isfinite(line["loss"]) for line in log)
    student = load(tmp_path / "student")
    _, params = student.networks["transformer"]
    assert not np.array_equal(params["delta_expand"]["kernel"], params["time_expand"]["kernel"])
    with ocp.StandardCheckpointer() as reader:
        fake_score = reader.restore(tmp_path / "student/checkpoints/6/fake_score")
        begun = reader.restore(tmp_path / "tuned/checkpoints/0/fake_score")
    assert "delta_expand" not in fake_score
    assert unchanged(fake_score, begun)
    made = {steps: latents_of(student, steps=steps) for steps in (1, 3, 8)}
    assert all(np.isfinite(latents).all() for latents in made.values())
    assert np.abs(made[1] - made[8]).max() > 1e-3
    work = planned(flow_map_config(), workdir)
    assert "delta_expand" in work.resident["student"]
    assert "delta_expand" not in work.resident["fake_score"]


def test_a_flow_map_is_no_teacher(workdir):
    card = checkpoint.read_card(workdir / "teacher")
    card["transformer"]["config"]["gate_value"] = 0.25
    config = student_config(make_config(), "student")
    with pytest.raises(UserError, match="is a flow map, which cannot be a teacher"):
        student_card(config, card, workdir / "teacher", workdir / "another")


def unchanged(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("generator.objectives.nowhere.losses:hinge=1", "there is no module 'nowhere'"),
        ("generator.objectives.toy_family:adversarial.flipp=1", "objective toy_family:adversarial: .*'flipp'"),
        ("generator.objectives.consistency.guidance=1 --config.generator.nothing=1", "has no field .*nothing"),
        ("nothing.objectives.consistency=1", "has no field .*nothing"),
    ],
)
def test_a_function_is_named_on_the_command_line(tmp_path, flag, words):
    """Its flags reach the config; what is wrong with them is one line."""
    flags = f"--config.{flag}".split()
    if "flipp" in flag:
        flags.append("--config.generator.objectives.toy_family:adversarial=0.1")
    done = commands.run(["main", "--config=configs/shapes.py", f"--workdir={tmp_path / 'W'}", *flags])
    assert done.returncode == 2
    assert re.search(words, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_faults_of_an_own_network_are_named():
    config = make_config()
    set_named(config.generator.objectives, {"consistency": {"own": {"updates": 2}}})
    with pytest.raises(UserError, match="consistency has no network of its own"):
        used(config.generator)
    config = adversarial_config()
    set_named(config.generator.objectives, {ADVERSARIAL: {"own": {"updates": 0}}})
    with pytest.raises(UserError, match=r"objectives.*own.updates: 0 is less than"):
        check(config, make_mesh(config.mesh, jax.devices()[:1]))
