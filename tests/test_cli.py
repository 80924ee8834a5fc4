"""Errors that become one line."""

from commands import command, run


def test_too_little_memory_is_one_line_and_the_workdir_takes_another_config(tmp_path):
    """Status 2, so that no scheduler starts the run again."""
    stages = {"config.stages": "('toy:greedy_stage',)"}
    result = run(command("main", config="configs/shapes.py", workdir=tmp_path / "W", **stages))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: a device has too little memory (RESOURCE_EXHAUSTED: Out of memory while trying to")
    assert "docs/memory.md" in line
    assert not (tmp_path / "W/config.json").exists()
