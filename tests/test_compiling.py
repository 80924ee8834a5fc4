"""Signs of life of a compiler, and what it leaves for the next command."""

import os
import re
import subprocess
import sys
import time

from dollar_jax import compiling


def test_a_task_is_announced(capsys, monkeypatch):
    monkeypatch.setattr(compiling, "PATIENCE", 0.05)
    with compiling.announced("generator: compiling"):
        time.sleep(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "generator: compiling ..."
    assert re.fullmatch(r"generator: compiling still, \d+ s", lines[1])
    assert re.fullmatch(r"generator: compiling: done, \d+ s", lines[-1])


PROGRAM = """
import jax, jax.numpy as jnp
from dollar_jax.compiling import keep_programs
keep_programs()
jax.jit(lambda x: jnp.sin(x).sum())(jnp.ones(3)).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def run(changes):
    """The last line that PROGRAM prints, in an environment without the tests' own cache."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"} | changes
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    return subprocess.run(command, env=environment, check=True, text=True, capture_output=True).stdout.strip()


def test_programs_are_kept_in_the_users_own_folder(tmp_path):
    used = run({"XDG_CACHE_HOME": str(tmp_path)})
    assert used.startswith(str(tmp_path / "dollar_jax" / "programs"))
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")}
    assert len(kept) >= 1
    assert run({"XDG_CACHE_HOME": str(tmp_path)}) == used
    assert kept == {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")}  # nothing new compiled


def test_jaxs_own_setting_goes_first(tmp_path):
    own, unused = tmp_path / "own", tmp_path / "unused"
    assert run({"JAX_COMPILATION_CACHE_DIR": str(own), "XDG_CACHE_HOME": str(unused)}) == str(own)
    assert not unused.exists()


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    assert run({"XDG_CACHE_HOME": str(tmp_path / "file")}) == "None"
