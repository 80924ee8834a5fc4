"""python -m dollar_jax.laboratory --experiment=NAME --out=DIR --seeds=0,1,2: runs an experiment over seeds.

A config file, by default configs/laboratory.py, defines the experiments: `EXPERIMENTS` has their names, `PARENTS` the
parent of each, an experiment whose networks it uses. Each seed first trains `base` (VAE, teacher, a student), the
parent of most experiments. The same command resumes a stopped experiment.

    DIR/base/SEED, DIR/NAME/SEED    workdirs of dollar_jax.main; the link `parent` in a workdir leads to the parent's
    DIR/NAME/report                 mean and spread over the seeds: index.html, report.md, report.json
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
from absl import flags

from dollar_jax import guard
from dollar_jax.cli import required, run
from dollar_jax.errors import UserError
from dollar_jax.evaluate import collapse

_CONFIG = flags.DEFINE_string("config_file", "configs/laboratory.py", "Python file that defines the experiments.")
_EXPERIMENT = flags.DEFINE_string("experiment", None, "Name of the experiment; `base` is the parent of most.")
_OUT = flags.DEFINE_string("out", None, "Folder of all experiments.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds; each has runs of its own.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Number of runs at a time; one uses about two cores.", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE, a change of the config of every run; may be repeated.")

# As in launch/demo.sh: memory in large pages, where Linux has them, costs less of the system's time.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PREFIXES = guard.PREFIX, collapse.PREFIX
STOPPED = 75  # exit status of a run that SIGTERM stopped, which is not done; EX_TEMPFAIL of sysexits.h


def main() -> None:
    required(_EXPERIMENT, _OUT)
    if not all(seed.isdigit() for seed in _SEEDS.value):
        raise UserError(f"--seeds={','.join(_SEEDS.value)}: wanted numbers, as in 0,1,2")
    table = read_table(_CONFIG.value)
    if _EXPERIMENT.value not in table.EXPERIMENTS:
        raise UserError(f"--experiment={_EXPERIMENT.value}: {_CONFIG.value} has {', '.join(table.EXPERIMENTS)}")
    plan = plan_of(_EXPERIMENT.value, table.PARENTS)
    out = Path(_OUT.value).resolve()
    begun, total = time.monotonic(), len(_SEEDS.value)
    with ThreadPoolExecutor(_JOBS.value) as pool:
        for done, seed in enumerate(pool.map(lambda seed: _run(out, plan, seed), _SEEDS.value), 1):
            minutes = (time.monotonic() - begun) / 60
            print(f"seed {seed} is done, {minutes * (total - done) / done:.0f} min left", flush=True)
    if _EXPERIMENT.value == "base":
        return
    folders = [out / _EXPERIMENT.value / seed for seed in _SEEDS.value]
    config = table.get_config(_EXPERIMENT.value)
    if "report" in config.stages:
        from dollar_jax.evaluate.report_runs import combine

        folder = out / _EXPERIMENT.value / "report"
        words = f"--config_file={_CONFIG.value} --experiment={_EXPERIMENT.value} --seeds={','.join(_SEEDS.value)}"
        combine([("", run) for run in folders], folder, f"python -m dollar_jax.laboratory {words}")
        print((folder / "report.md").read_text())
    print(curves(folders, list(config.students)))


def read_table(path: str) -> ModuleType:
    """Imports the config file, a module with `get_config`, `EXPERIMENTS` and `PARENTS`.

    Raises:
      UserError: the file does not exist or is no Python, or lacks one of the three.
    """
    spec = importlib.util.spec_from_file_location("experiments", path)
    if spec is None or not Path(path).is_file():
        raise UserError(f"--config_file={path}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--config_file={path}, line {error.lineno}: {error.msg}") from error
    if lacking := [name for name in ("get_config", "EXPERIMENTS", "PARENTS") if not hasattr(module, name)]:
        raise UserError(f"--config_file={path} has no {lacking[0]}: configs/laboratory.py is an example")
    return module


def curves(folders: Sequence[Path], students: Sequence[str]) -> str:
    """Markdown tables of the values measured on held-out prompts during training, one for each student.

    Values are mean and standard deviation over the folders; the time of an update is the median.
    """
    from dollar_jax import metrics

    rows = []
    for student in students:
        logs = [metrics.read(folder / student) for folder in folders]
        seconds = [line["seconds_per_step"] for log in logs for line in log if "seconds_per_step" in line]
        if seconds:
            rows += ["", f"{student}: {1000 * np.median(seconds):.0f} ms an update"]
        lines = [line for log in logs for line in log if any(name.startswith(PREFIXES) for name in line)]
        names = [name for name in lines[-1] if name.startswith(PREFIXES)] if lines else []
        if names:
            rows += ["", "| updates | " + " | ".join(name.removeprefix(guard.PREFIX) for name in names) + " |"]
            rows.append("|---" * (len(names) + 1) + "|")
        for step in sorted({line["step"] for line in lines}):
            values = [[line.get(name) for line in lines if line["step"] == step] for name in names]
            rows.append(f"| {step + 1} | " + " | ".join(map(_cell, values)) + " |")
    return "\n".join(rows)


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3g} ± {np.std(known):.2g}" if known else "-"


def _run(out: Path, plan: Sequence[tuple[str, str | None]], seed: str) -> str:
    """Runs the experiments of a plan with one seed; returns the seed."""
    for name, parent in plan:
        folder, flag = out / name / seed, []
        folder.mkdir(parents=True, exist_ok=True)
        if parent:
            source = out / parent / seed
            for link, target in {"parent": source, "encoded": source / "encoded"}.items():
                if not (folder / link).is_symlink():
                    (folder / link).symlink_to(target)
            flag = [f"--config.teacher.path={source / 'teacher'}"]
        command = [sys.executable, "-m", "dollar_jax.main", f"--config={_CONFIG.value}:{name}", *flag]
        command += [f"--workdir={folder}", f"--config.seed={seed}", f"--stop_status={STOPPED}"]
        command += [f"--config.{change}" for change in _SET.value]
        output = None if _JOBS.value == 1 else subprocess.DEVNULL
        result = subprocess.run(command, stdout=output, env=LARGE_PAGES | os.environ)
        if result.returncode:
            end = "was stopped" if result.returncode == STOPPED else "failed, see above"
            raise UserError(f"{name}, seed {seed}: the run {end}; the same command goes on with it")
    return seed


def plan_of(experiment: str, parents: Mapping[str, str | None]) -> list[tuple[str, str | None]]:
    """[(experiment, its parent)] in order: ancestors come first. The parent is `base` if `parents` names none."""
    parent = parents.get(experiment, "base")
    return [*(plan_of(parent, parents) if parent else []), (experiment, parent)]


if __name__ == "__main__":
    run(main)
