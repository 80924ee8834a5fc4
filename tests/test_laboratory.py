import json
import subprocess
from types import SimpleNamespace

import pytest
from absl import flags
from absl.testing import flagsaver

from configs.laboratory import EXPERIMENTS, get_config
from dollar_jax import laboratory
from dollar_jax.data.prompts import read_prompts
from dollar_jax.data.shapes import CAPTIONS
from dollar_jax.errors import UserError
from dollar_jax.evaluate import report_runs
from dollar_jax.objectives import used
from dollar_jax.rewards.judge import Judge
from dollar_jax.stages.student import student_config


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_student_of_an_experiment_can_be_made(experiment):
    """Its fields exist, its objectives and its reward are found."""
    config = get_config(experiment)
    for name in config.students:
        own = student_config(config, name)
        assert used(own.generator)
        Judge(own.reward)


def test_the_prompts_without_videos_are_those_of_the_shapes_world():
    assert read_prompts(get_config("prompts_alone").data.prompts) == list(CAPTIONS)


def test_an_experiment_follows_those_whose_networks_it_uses(tmp_path, monkeypatch, capsys):
    commands, reports = [], []

    def succeed(command, stdout, env):
        commands.append(command)
        assert env["GLIBC_TUNABLES"] == "the user's"
        return SimpleNamespace(returncode=0)

    def combine(runs, folder, words):
        reports.append([run for _, run in runs])
        folder.mkdir()
        (folder / "report.md").write_text(f"table of {folder.parent.name}")

    monkeypatch.setenv("GLIBC_TUNABLES", "the user's")
    monkeypatch.setattr(subprocess, "run", succeed)
    monkeypatch.setattr(report_runs, "combine", combine)
    for experiment in "objectives", "short_prompts":
        with flagsaver.flagsaver():
            flags.FLAGS(["laboratory", f"--experiment={experiment}", f"--out={tmp_path}", "--seeds=3", "--set=a=1"])
            laboratory.main()
    names = [next(part for part in line if part.startswith("--config=")).partition(":")[2] for line in commands]
    teachers = [[part for part in line if "teacher.path" in part] for line in commands]
    assert names == ["base", "objectives", "long_prompts", "short_prompts"]
    flag = "--config.teacher.path={}/{}/3/teacher".format
    assert teachers == [[], [flag(tmp_path, "base")], [], [flag(tmp_path, "long_prompts")]]
    for name, line in zip(names, commands, strict=True):
        assert line[1:3] == ["-m", "dollar_jax.main"]
        assert {f"--workdir={tmp_path / name / '3'}", "--config.seed=3", "--config.a=1"} <= set(line)
    for link, target in {"parent": ".", "encoded": "encoded"}.items():
        assert (tmp_path / "short_prompts/3" / link).readlink() == tmp_path / "long_prompts/3" / target
    assert not list((tmp_path / "long_prompts/3").iterdir())
    assert reports == [[tmp_path / "objectives/3"], [tmp_path / "short_prompts/3"]]
    assert [line for line in capsys.readouterr().out.splitlines() if "table" in line] == [
        "table of objectives",
        "table of short_prompts",
    ]


def test_the_failure_of_a_run_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: SimpleNamespace(returncode=1))
    with flagsaver.flagsaver():
        flags.FLAGS(["laboratory", "--experiment=objectives", f"--out={tmp_path}", "--seeds=3"])
        with pytest.raises(UserError, match=r"base, seed 3: the run failed, .*; the same command goes on"):
            laboratory.main()


def test_a_run_that_was_stopped_is_not_done(tmp_path, monkeypatch, capsys):
    commands = []

    def stop(command, **_):
        commands.append(command)
        (status,) = [part.partition("=")[2] for part in command if part.startswith("--stop_status=")]
        return SimpleNamespace(returncode=int(status))

    monkeypatch.setattr(subprocess, "run", stop)
    with flagsaver.flagsaver():
        flags.FLAGS(["laboratory", "--experiment=objectives", f"--out={tmp_path}", "--seeds=3"])
        with pytest.raises(UserError, match=r"base, seed 3: the run was stopped; the same command goes on with it"):
            laboratory.main()
    assert len(commands) == 1, "nothing that follows the stopped run is begun"
    assert not capsys.readouterr().out


def test_experiments_come_from_the_file_that_is_given(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("EXPERIMENTS, PARENTS = ('mine',), {'mine': None}\n\n\ndef get_config(name):\n    return name\n")
    table = laboratory.read_table(str(path))
    assert (table.get_config("mine"), laboratory.plan_of("mine", table.PARENTS)) == ("mine", [("mine", None)])
    path.write_text("EXPERIMENTS = ()\n")
    with pytest.raises(UserError, match=r"own\.py has no get_config"):
        laboratory.read_table(str(path))
    path.write_text("def\n")
    with pytest.raises(UserError, match=r"own\.py, line 1: invalid syntax"):
        laboratory.read_table(str(path))
    for missing in (tmp_path / "none.py", tmp_path):
        with pytest.raises(UserError, match="there is no such Python file"):
            laboratory.read_table(str(missing))


def test_curves_are_means_over_seeds(tmp_path):
    for seed, shift in (("0", 0.0), ("1", 2.0)):
        folder = tmp_path / seed / "lrm"
        folder.mkdir(parents=True)
        lines = [
            {"step": -1, "held_out/reward": 1.0 + shift},
            {"step": 9, "seconds_per_step": 0.25, "loss": 3.0},
            {"step": 9, "held_out/reward": 5.0 + shift, "held_out/hf": None},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = laboratory.curves([tmp_path / "0", tmp_path / "1"], ["lrm"]).splitlines()
    assert table == [
        "",
        "lrm: 250 ms an update",
        "",
        "| updates | reward | hf |",
        "|---|---|---|",
        "| 0 | 2 ± 1 | - |",
        "| 10 | 6 ± 1 | - |",
    ]
