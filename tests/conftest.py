"""Every test runs with jaxtyping checked, rank promotion refused and warnings as errors."""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # as in dollar_jax.data.text, which may be imported too late
# The workers of pytest take all cores already, and threads of PyTorch that wait for each other take time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONUNBUFFERED", None)  # commands have to flush what they print by themselves
# Most of the time of these small programs is compilation: unoptimised, by XLA's older emitters, as one LLVM module and
# without LLVM's expensive passes, it takes a fourth.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true",
)
# A worker of pytest and the commands that it starts compile a program once. Workers do not share the folder: JAX writes
# an entry in place, and another process may read half of it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dollar_jax-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest
from jaxtyping import install_import_hook

from dollar_jax.importing import trust

gc.disable()  # while test files are imported, see `pytest_collection_finish`
install_import_hook("dollar_jax", "beartype.beartype")

# The helpers of several test files, also in the processes that tests start.
sys.path.insert(0, str(Path(__file__).parent / "helpers"))
jax.config.update("jax_numpy_rank_promotion", "raise")
trust(["toy_pipeline", "test_tuning"])  # their models' cards name networks of theirs

# The longest files, which begin first, so that no worker of pytest is left alone with one at the end.
LONGEST = [
    "test_end_to_end.py",
    "test_interrupted.py",
    "test_tuning.py",
    "test_convert.py",
    "test_sharding.py",
    "test_cogvideox_vae.py",
    "test_tour.py",
    "test_wan.py",
    "test_toy_family.py",
    "test_dollar.py",
    "test_attention.py",
    "test_objectives.py",
    "test_wan_vae.py",
    "test_cogvideox_dit.py",
    "test_checkpoint.py",
    "test_lora_run.py",
    "test_lora.py",
    "test_plan.py",
    "test_policy_gradient.py",
    "test_tiling.py",
    "test_peer.py",
    "test_wan_dit.py",
    "test_human_browser.py",
    "test_pairs_reward.py",
    "test_clip.py",
]


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_collection_finish():
    """Of a test's CPU time a tenth was the garbage collector's, which looked through all modules and traces."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    gc.enable()


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """A module's compiled programs are freed at its end: a worker took 5 GB of memory at the end of all."""
    yield
    jax.clear_caches()
