"""What a config is refused for before anything is trained."""

import json

import jax
import numpy as np
import pytest
import toy_pipeline
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import dollar, shapes
from dollar_jax import importing
from dollar_jax.check import check
from dollar_jax.config import named, trust_networks
from dollar_jax.data.dataset import write_dataset
from dollar_jax.data.shapes import CAPTIONS
from dollar_jax.errors import UserError
from dollar_jax.main import claim, refuse_links
from dollar_jax.rewards.judge import Judge
from dollar_jax.sharding import AXES, make_mesh
from dollar_jax.videos import read_noise
from dollar_jax.watch import alone

DETAIL = "dollar_jax.evaluate.metrics.detail:Detail"


def run(config):
    check(config, make_mesh(config.mesh, jax.devices()[:1]))


def refused(config, words):
    with pytest.raises(UserError, match=words) as refusal:
        run(config)
    assert "\n" not in str(refusal.value)


def test_the_config_of_the_shapes_world_passes():
    run(shapes.get_config())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("seed", -1, "the config: seed: -1 is less than the minimum of 0"),
        ("seed", 2**31 - 1, "the config: seed: "),  # the held-out videos'
        ("vae.batch_size", 0, "the config: vae.batch_size: 0"),
        ("teacher.accumulate", 0, "the config: teacher.accumulate: 0"),
        ("generator.accumulate", 3, "batch_size 16 .*accumulate = 3"),
        ("generator.save_every", 0, "the config: generator.save_every: 0"),
        ("generator.keep", 0, "the config: generator.keep: 0"),
        ("generator.log_every", 0, "the config: generator.log_every: 0"),
        ("generator.iterations", -1, "the config: generator.iterations: -1"),
        ("generator.ema", 1.5, "the config: generator.ema: 1.5"),
        ("generator.optimizer.learning_rate", float("nan"), "the config: NaN is no number"),
        ("generator.optimizer.learning_rate", float("inf"), "the config: Infinity is no number"),
        ("generator.optimizer.learning_rate", -1e-4, "the config: generator.optimizer.learning_rate: -0.0001"),
        ("generator.optimizer.b2", 1.0, "the config: generator.optimizer.b2: 1.0"),
        ("generator.sampler", "euler", "the config: generator.sampler: 'euler' is not one of"),
        ("generator.rollout", "guess", "the config: generator.rollout: 'guess'"),
        ("generator.matched_times", "some", "the config: generator.matched_times: 'some'"),
        ("generator.guidance", 1.5, "student vsd_cd: generator.guidance=1.5 guides samples, but not the simulated"),
        ("generator.times", (249, 5000), "generator.times: 5000 is no time of the schedule, above -1 and up to 999"),
        ("generator.times", (), "the config: generator.times"),
        ("generator.times", (999, 999), "the config: generator.times"),
        ("fake_score.updates", 0, "the config: fake_score.updates: 0"),
        ("fake_score.updates_per_rollout", 3, "updates_per_rollout=3 does not divide fake_score.updates=2"),
        ("reward.step", "never", "the config: reward.step: 'never'"),
        ("dtype", "float16", "the config: dtype: 'float16' is not one of"),  # its gradients vanish
        ("remat", "some", "the config: remat: 'some' is not one of .*nothing_saveable"),
        ("attention", "flash", "the config: attention: 'flash' is not one of .*splash"),
        ("teacher.prediction_type", "noise", "the config: teacher.prediction_type: 'noise'"),
        ("reward.name", "no_such_reward", "no_such_reward"),
        ("teacher.sampler", "euler", "the config: teacher.sampler: 'euler'"),
        ("video.fps", float("inf"), "the config: Infinity"),
        ("show_captions", (), "the config: show_captions"),
        ("video.independent_chunk", 4, "config.video has 9 frames, no multiple of independent_chunk=4"),
        ("report.metrics", {"nix": {}}, "nix: there is no module"),
        ("report.metrics", {"vendi": {"seed": 3}}, "metric vendi: its options do not fit"),
        ("report.metrics.vendi", 3, "the config: report.metrics.vendi: 3 is not of type 'object'"),
        ("report.metrics", {"detail": {}, f"{DETAIL}": {}}, "its key hf is that of metric detail too"),
        (
            "generator.guard.metric",
            "-fid",
            "generator.guard.metric=-fid is not measured; choose one of alignment",
        ),
        ("generator.guard.metric", "frechet", "metric=frechet, but lower is better: a minus in front"),
        ("generator.guard.metric", "-alignment", "metric=-alignment, but higher is better: a minus"),
        ("report.teacher_samplers", (("euler", 50),), "report.teacher_samplers.0.0: 'euler' is not one of"),
        ("report.teacher_samplers", (("ddim",),), "report.teacher_samplers.0: "),
        ("report.reference_clips", 50, "metric frechet needs 128 real clips or more, there are 50"),
        ("data.clips", 20, "20 examples are too few: an iteration takes 48"),
        ("data.path", "/nowhere", "/nowhere"),
        ("data.held_out", 1.5, "the config: data.held_out: 1.5"),
        ("data.held_out_files", (3,), "the config: data.held_out_files.0: 3 is not of type 'string'"),
    ],
)
def test_what_can_be_known_is_refused(field, value, words):
    config = shapes.get_config()
    *parents, name = field.split(".")
    part = config
    for parent in parents:
        part = part[parent]
    with part.ignore_type():
        part[name] = named(**value) if name == "metrics" else value
    refused(config, words)


def test_a_guard_counts_where_it_guards():
    config = shapes.get_config()
    config.generator.guard.metric = "-fid"
    config.held_out.videos_per_caption = 0
    run(config)
    config.held_out.videos_per_caption = 2
    config.students.vsd_cd.generator.guard = {"metric": "-frechet"}
    refused(config, "student vsd_cd_lrm: generator.guard.metric=-fid")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator": {"flow_map": True}, "lora": {"rank": 4}}, "flow_map needs weights of its own for the second"),
        ({"generator": {"flow_map": True, "matched_times": "trajectory"}}, "take segment or all"),
        (
            {
                "generator": {"objectives": {"variational_score": 0.0, "consistency": 0.0}},
                "reward": {"step": "separate"},
            },
            "reward.step=separate needs an objective beside latent_reward",
        ),
        ({"reward": {"replay": 24}}, "reward.replay=24 must be a multiple of the 16 videos"),
        ({"reward": {"network": {"text_width": 7}}}, "text_width is the teacher's: leave it out, and set"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused_before_the_teacher_is_trained(changes, words):
    config = shapes.get_config()
    config.students.vsd_cd_lrm = ConfigDict({"start_from": "vsd_cd", **changes}, convert_dict=True)
    refused(config, f"student vsd_cd_lrm: .*{words}")


def test_a_students_own_changes_are_looked_at():
    config = shapes.get_config()
    config.students.vsd_cd_lrm.generator.save_every = 0
    refused(config, r"student vsd_cd_lrm: generator.save_every: 0")


def test_a_flow_map_does_not_predict_x0():
    """At the clean time, where the derivative may be taken, eps would be divided by 0."""
    config = shapes.get_config()
    config.generator.flow_map = config.generator.heterogeneous = True
    refused(config, "a flow map that predicts x0 has no velocity where b = 0: set heterogeneous=False")


def test_the_papers_recipe_asks_for_data():
    config = dollar.get_config()
    refused(config, r"there is no data: set --config.data.path")


def test_a_teacher_and_data_of_ones_own(tmp_path):
    """The teacher's schedule counts, data must fill a batch, and what is refused is refused before it is read."""
    config = shapes.get_config()
    config.teacher.path = str(toy_pipeline.write(tmp_path / "teacher", ["a cat"]))
    config.stages = ("encode", "distill")
    config.held_out.videos_per_caption = 0
    run(config)
    card = json.loads((tmp_path / "teacher/config.json").read_text())
    card["schedule"]["steps"] = 500
    card["times"] = [499]
    (tmp_path / "teacher/config.json").write_text(json.dumps(card))
    refused(config, "generator.times: 749 is no time of the schedule, above -1 and up to 499")

    config.generator.times = (499,)
    examples = [{"video": np.zeros((9, 32, 32, 3), np.uint8), "caption": "a cat"}] * 3
    write_dataset(tmp_path / "data", iter(examples), {"frames": 9, "height": 32, "width": 32, "fps": 8.0})
    config.data.path = str(tmp_path / "data")
    refused(config, "data was written without the names of its files")
    config.data.held_out = 0.0
    refused(config, "3 examples are too few: an iteration takes 48")


def test_a_reward_must_take_the_images_of_the_data(tmp_path):
    """A replay does not, nor one that compares frames; without images they do."""
    config = shapes.get_config()
    config.stages, config.report.metrics = ("vae", "encode", "teacher", "distill"), named(vendi={})
    config.data.held_out, config.generator.guard.metric = 0.0, ""
    sizes = {"frames": 9, "height": 32, "width": 32, "fps": 8.0}
    for name, lengths in {"videos": (9,), "both": (9, 1)}.items():
        examples = [
            {"video": np.zeros((length, 32, 32, 3), np.uint8), "caption": CAPTIONS[0]}
            for length in lengths
            for _ in range(48)
        ]
        write_dataset(tmp_path / name, iter(examples), sizes)
    config.data.path = str(tmp_path / "both")
    run(config)
    for field, value, words in (
        ("replay", 16, r"student vsd_cd_lrm: reward\.replay=16 keeps videos of one length, and the data have images"),
        ("name", "dollar_jax.rewards.motion:motion_smoothness", "vsd_cd_lrm: leave images out .*at least 3 frames"),
    ):
        changed = config.copy_and_resolve_references()
        changed.reward[field] = value
        refused(changed, words)
        changed.data.path = str(tmp_path / "videos")
        run(changed)


def test_a_reward_model_whose_batch_does_not_divide_is_refused_before_the_first_student_is_trained():
    config = shapes.get_config()
    config.reward.batch_size = 1
    mesh = Mesh(np.array(jax.devices()[:1] * 2).reshape(1, 2, 1), AXES)
    with pytest.raises(UserError, match=r"reward\.batch_size 1 does not divide over data x fsdp = 2 devices"):
        check(config, mesh)


def test_what_is_measured_beside_the_training_is_said(tmp_path, capsys):
    """Of a dataset whose videos are held out in part, nothing is."""
    config = shapes.get_config()
    examples = [
        {"video": np.zeros((9, 32, 32, 3), np.uint8), "caption": CAPTIONS[0], "file": f"{i}.mp4"} for i in range(64)
    ]
    write_dataset(tmp_path / "data", iter(examples), {"frames": 9, "height": 32, "width": 32, "fps": 8.0})
    config.data.path = str(tmp_path / "data")
    config.report.metrics = named(vendi={})
    config.generator.guard.metric = ""
    for share, said in ((0.0, "measured beside videos of the training: config.data.held_out is 0\n"), (0.1, "")):
        config.data.held_out = share
        run(config)
        assert capsys.readouterr().out == said
    config.report.metrics = named(frechet={})
    refused(config, "needs 4 real clips or more, there are 3: raise report.reference_clips or data.held_out, or give")


def test_a_config_is_the_users_own_code(monkeypatch):
    """Networks that it names are trusted, in the cards too that the run writes."""
    monkeypatch.setattr(importing, "_trusted", set())
    config = shapes.get_config()
    config.teacher.architecture = "my_fork.nets:build"
    config.students.vsd_cd.reward = ConfigDict({"architecture": "my_fork.rewards:build"})
    trust_networks(config)
    assert importing.is_trusted("my_fork.nets")
    assert importing.is_trusted("my_fork.rewards")
    assert not importing.is_trusted("my_fork")


@pytest.mark.parametrize("content", ["{", "[]", '{"seed": ', "null", "\x00"])
def test_a_damaged_note_of_the_config_is_one_line(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json is damaged") as refusal:
        claim(tmp_path, {"seed": 0})
    assert "\n" not in str(refusal.value)


def test_a_run_goes_on_with_what_another_machine_needs(tmp_path):
    """Also where the field is new; another field is refused."""
    config = json.loads(shapes.get_config().to_json())
    old = {**config, "mesh": {"data": 8}, "data": {k: v for k, v in config["data"].items() if k != "encode_batch_size"}}
    claim(tmp_path, old)
    claim(tmp_path, config)
    config["data"]["held_out"] = 0.5
    with pytest.raises(UserError, match=r"data\.held_out is 0\.05 there, 0\.5 here \(1 in all\)"):
        claim(tmp_path, config)


def test_a_run_does_not_write_through_links(tmp_path):
    """A workdir may be a stranger's, too."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text("mine")
    (own / ".profile").write_text("mine")
    workdir = tmp_path / "W"
    workdir.mkdir()
    for name in (
        "vsd_cd",
        "vae/checkpoints",
        "report/clips",
        "encoded",
        "encoded/vae",
        "encoded_prompts",
        "vae/a.jsonl",
    ):
        path = workdir / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(own / "config.json" if path.suffix else own)
        with pytest.raises(UserError, match=f"{name} is a link"):
            refuse_links(workdir)
        path.unlink()
    (workdir / ".lock").symlink_to(own / ".profile")
    with pytest.raises(UserError, match=r"\.lock is a link"), alone(workdir):
        pass
    assert {path.read_text() for path in own.iterdir()} == {"mine"}


@pytest.mark.parametrize("content", ["encoded/data", "vae"])
def test_a_run_reads_through_the_links_of_the_laboratory(content, tmp_path):
    """Of a parent that encoded its data, and of one whose data was encoded before."""
    (tmp_path / "base" / content).mkdir(parents=True)
    workdir = tmp_path / "W"
    workdir.mkdir()
    (workdir / "parent").symlink_to(tmp_path / "base")
    (workdir / "encoded").symlink_to(tmp_path / "base/encoded")
    refuse_links(workdir)


def test_noise_is_one_array(tmp_path):
    path = tmp_path / "noise.npy"
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(UserError, match="several arrays"):
        read_noise(str(path), (3,))
    np.save(path, np.zeros((2, 3), np.float32))
    assert read_noise(str(path), (2, 3)).sum() == 0
    path.write_bytes(path.read_bytes().replace(b"(2, 3)", b"(9, 9)"))  # more than the file holds
    with pytest.raises(UserError, match=r"noise\.npy"):
        read_noise(str(path), (9, 9))
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"noise\.npy"):
        read_noise(str(path), (2, 3))


def test_a_reward_that_students_share_is_made_once(monkeypatch):
    """It may load gigabytes."""
    made = []

    def judge(reward):
        made.append(reward.name)
        return Judge(reward)

    monkeypatch.setattr("dollar_jax.check.Judge", judge)
    config = shapes.get_config()
    run(config)
    assert made == ["brightness"]
    config.students.vsd_cd.reward = ConfigDict({"name": "dollar_jax.rewards.shapes_world:BorderBrightness"})
    run(config)
    assert sorted(made[1:]) == ["brightness", "dollar_jax.rewards.shapes_world:BorderBrightness"]
