import json

import pytest

from configs.laboratory import EXPERIMENTS, get_config
from dollar_jax import laboratory
from dollar_jax.rewards.judge import Judge
from dollar_jax.stages.distill import needs_of, student_config


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_student_of_an_experiment_can_be_made(experiment):
    """Its fields exist, its objectives and its reward are found."""
    config = get_config(experiment)
    for name in config.students:
        own = student_config(config, name)
        needs_of(own.generator)
        Judge(own.reward)


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
