"""What `pip install` brings, built here and unpacked: the package alone, its configs, and the command."""

import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from dollar_jax.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = ("dollar_jax", "configs", "pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel puts into site-packages."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in SOURCES:  # a build writes beside its sources
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, source)
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def call(installed, folder, *words):
    """The console command, in a folder that is no checkout."""
    script = "import sys; from dollar_jax.__main__ import main; sys.argv[0] = 'dollar-jax'; main()"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_has_the_package_with_its_data_and_nothing_beside_it(installed):
    (info,) = installed.glob("*.dist-info")
    assert {path.name for path in installed.iterdir()} == {"dollar_jax", info.name}
    for folder, inside in {"configs": "dollar_jax/configs", "dollar_jax": "dollar_jax"}.items():
        wanted = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc"}
        wanted = {path for path in wanted if "__pycache__" not in path.parts}
        found = {path.relative_to(installed / inside) for path in (installed / inside).rglob("*")}
        assert wanted <= found, wanted - found
    scripts = ConfigParser()
    scripts.read(info / "entry_points.txt")
    assert dict(scripts["console_scripts"]) == {"dollar-jax": "dollar_jax.__main__:main"}


def test_the_command_names_its_commands(installed, tmp_path):
    result = call(installed, tmp_path, "--help")
    lines = {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")}
    assert lines == {"configs", *COMMANDS}
    modules = {path.parent.name for path in (ROOT / "dollar_jax").glob("*/__main__.py")}
    modules |= {path.stem for path in (ROOT / "dollar_jax").glob("*.py") if "\n    run(main)" in path.read_text()}
    assert modules == COMMANDS.keys()
    wrong = call(installed, tmp_path, "train")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: train: no such command; give one of configs, main")
    assert wrong.stderr.count("\n") == 1


def test_configs_are_copied_and_then_found(installed, tmp_path):
    assert "shapes.py" in call(installed, tmp_path, "configs").stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs"]
    again = call(installed, tmp_path, "configs")
    assert (again.returncode, again.stderr[:30]) == (2, "error: configs exists already:")
    # A config that imports another one. The run is refused after it was read.
    result = call(installed, tmp_path, "main", "--config=configs/pairs.py", "--workdir=W", "--config.stages=('no',)")
    assert result.returncode == 2
    assert "dollar_jax.stages.no" in result.stderr


def test_a_checkout_has_its_configs_already(tmp_path):
    result = call(ROOT, tmp_path, "configs")
    assert result.returncode == 2
    assert result.stderr.startswith("error: this is a checkout")
    assert not list(tmp_path.iterdir())
