"""The scripts and manifests of clusters that are not at hand: what can be checked of them without one."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])

# Of https://github.com/kubernetes-sigs/jobset, config/components/crd: the fields that a manifest of ours may use.
JOBSET = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["replicatedJobs"],
            "properties": {
                "network": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "enableDNSHostnames": {"type": "boolean"},
                        "publishNotReadyAddresses": {"type": "boolean"},
                        "subdomain": {"type": "string"},
                    },
                },
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "restartStrategy": {"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
                        "rules": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["action", "name"],
                                "properties": {
                                    "action": {
                                        "enum": [
                                            "FailJobSet",
                                            "RestartJobSet",
                                            "RestartJobSetAndIgnoreMaxRestarts",
                                            "RestartJob",
                                            "RestartJobAndIgnoreMaxRestarts",
                                        ]
                                    },
                                    "name": {"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                                    "onJobFailureReasons": {
                                        "type": "array",
                                        "items": {
                                            "enum": [
                                                "BackoffLimitExceeded",
                                                "DeadlineExceeded",
                                                "FailedIndexes",
                                                "MaxFailedIndexesExceeded",
                                                "PodFailurePolicy",
                                            ]
                                        },
                                    },
                                    "targetReplicatedJobs": {"type": "array", "items": {"type": "string"}},
                                },
                            },
                        },
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "template"],
                        "properties": {
                            "name": {"pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$"},
                            "replicas": {"type": "integer", "minimum": 1},
                            "template": {"type": "object", "required": ["spec"], "additionalProperties": False}
                            | {"properties": {"metadata": {"type": "object"}, "spec": {"type": "object"}}},
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts(script):
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "pip install -r tests/requirements.txt"
    found = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", ["gpu_node.sh", "tpu_pod.sh", "slurm.sbatch"])
def test_scripts_say_how_they_are_used(script):
    found = subprocess.run([LAUNCH / script, "one"], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 2
    assert "usage: " in found.stderr
    assert "CONFIG WORKDIR" in found.stderr


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Replaces programs by ones that write down their arguments and end as they are told."""
    log = tmp_path / "calls"
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(path, status=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'#!/bin/bash\nprintf "%s\\x1f" "${{0##*/}}" "$@" >> {log}\nprintf "\\x1e" >> {log}\nexit {status}\n'
        )
        path.chmod(0o755)

    def run(script, *arguments, **programs):
        for name, status in programs.items():
            make(folder / name, status)
        make(tmp_path / "venv/bin/python")
        environment = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "VENV": str(tmp_path / "venv"),
            "SLURM_JOB_ID": "77",
            "SLURM_SUBMIT_DIR": str(ROOT),
        }
        done = subprocess.run(
            [LAUNCH / script, *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        return done, [call.split("\x1f")[:-1] for call in log.read_text().split("\x1e")[:-1]]

    return run


MAIN = ["-m", "dollar_jax.main", "--config=C", "--workdir=W W", "--config.seed=1"]


def test_a_slurm_job_that_saved_and_stopped_queues_itself_again(tools):
    arguments = ("slurm.sbatch", "C", "W W", "--config.seed=1")
    done, calls = tools(*arguments, srun=75, scontrol=0)
    assert done.returncode == 75, done.stderr
    assert calls[0][-6:] == [*MAIN[:-1], "--stop_status=75", MAIN[-1]]
    assert calls[1:] == [["scontrol", "requeue", "77"]]
    for status in (0, 1, 2, 143):
        done, calls = tools(*arguments, srun=status, scontrol=0)
        assert done.returncode == status
        assert calls[-1][0] == "srun"


def test_slurm_leaves_time_for_iterations_and_a_checkpoint():
    (seconds,) = re.findall(r"#SBATCH --signal=TERM@(\d+)\n", (LAUNCH / "slurm.sbatch").read_text())
    assert int(seconds) >= 1800


def test_tests_run_with_the_python_that_is_asked_for(tools, monkeypatch):
    monkeypatch.setenv("PYTHON", "python3.13")
    done, calls = tools("test.sh", **{"python3": 4, "python3.13": 3})
    assert done.returncode == 3
    assert [call[:3] for call in calls] == [["python3.13", "-m", "venv"]]


def test_a_gpu_node_installs_and_runs(tools):
    done, calls = tools("gpu_node.sh", "C", "W W", "--config.seed=1")
    assert done.returncode == 0, done.stderr
    install, main = calls
    assert install[-1] == "jax[cuda13]"
    assert main == ["python", *MAIN]


def test_a_tpu_slice_gets_the_command_unchanged_on_every_host(tools):
    done, calls = tools("tpu_pod.sh", "name", "zone", "C", "W W", "--config.seed=1", gcloud=0)
    assert done.returncode == 0, done.stderr
    copy, install, main = calls
    assert copy[4] == "scp"
    for call in calls:
        assert {"--zone=zone", "--worker=all"} < set(call)
    remote = main[-1].removeprefix("--command=")
    assert subprocess.run(["bash", "-n", "-c", remote]).returncode == 0
    assert shlex.split(remote.partition("python ")[2])[:5] == MAIN
    script = install[-1].removeprefix("--command=")
    assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0


def test_a_tpu_slice_gets_code_and_no_weights(tmp_path):
    """What is tracked and what is new; nothing that git ignores or that is large."""
    folder, programs = tmp_path / "repository", tmp_path / "bin"
    shutil.copytree(LAUNCH, folder / "launch")
    programs.mkdir()
    gcloud = programs / "gcloud"
    gcloud.write_text(f'#!/bin/bash\n[ "$4" != scp ] || cp "$5" {tmp_path}/archive\n')
    gcloud.chmod(0o755)
    (folder / ".gitignore").write_text("/out/\n")
    (folder / "gone.py").touch()
    for command in ("init -q", "add .", "rm -q --cached launch/demo.sh"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    (folder / "gone.py").unlink()
    (folder / "my losses.py").touch()
    (folder / "out").mkdir()
    (folder / "out/run.log").touch()
    (folder / "weights").write_bytes(bytes(10_000_001))
    done = subprocess.run(
        [folder / "launch/tpu_pod.sh", "name", "zone", "C", "W"],
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "left out, larger than 10 MB: weights\n"
    with tarfile.open(tmp_path / "archive") as archive:
        names = set(archive.getnames())
    assert names == {".gitignore", "my losses.py", *(f"launch/{path.name}" for path in LAUNCH.iterdir())}


def test_the_jobset_has_the_fields_of_its_api(jobset):
    jsonschema.validate(jobset, JOBSET)
    for job in jobset["spec"]["replicatedJobs"]:
        # JobSet makes Jobs of its templates; Kubernetes' own schema says what these may be.
        template = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}} | job["template"]
        kubernetes_validate.validate(template, "1.34", strict=True)


def test_the_jobset_restarts_as_a_run_needs_it(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    # All hosts of a slice, all of their chips.
    chips = container["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert spec["parallelism"] == spec["completions"] == rows * columns / chips
    assert spec["completionMode"] == "Indexed"
    # One pod that fails fails its Job, so that all start again: except for a mistake that they would repeat.
    assert spec["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [2]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert pod["terminationGracePeriodSeconds"] >= 1800  # an iteration takes minutes, and then a checkpoint is written
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    # The shell must not stand between the signal and the run.
    script = container["command"][-1]
    assert "exec python -m dollar_jax.main" in script
    # Neither finished (0) nor a mistake (2).
    assert "--stop_status=75" in script
    assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0
    variables = {entry["name"] for entry in container["env"]}
    assert set(re.findall(r"\$(\w+)", script)) <= variables
    # For GPUs, process 0 is where JobSet puts it: JOBSET-JOB-0-0.JOBSET.
    name = jobset["metadata"]["name"]
    assert f"--coordinator={name}-{job['name']}-0-0.{name}:" in (LAUNCH / "jobset.yaml").read_text()


def test_calls_of_the_program_have_its_flags():
    known = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', (ROOT / "dollar_jax" / "main.py").read_text()))
    given = set()
    for path in [*SCRIPTS, LAUNCH / "jobset.yaml"]:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            given |= set(re.findall(r"--(\w+)", line.partition("dollar_jax.main")[2]))
    assert {"config", "workdir", "stop_status", "coordinator", "processes", "process"} <= given <= known
