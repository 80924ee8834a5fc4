"""Every test runs with jaxtyping checked, rank promotion refused and warnings as errors."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.pop("PYTHONUNBUFFERED", None)  # commands have to flush what they print by themselves
# Most of the time of these small programs is compilation: unoptimised, it takes less than half.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
from jaxtyping import install_import_hook

from dollar_jax.importing import trust

install_import_hook("dollar_jax", "beartype.beartype")

# The helpers of several test files, also in the processes that tests start.
sys.path.insert(0, str(Path(__file__).parent / "helpers"))
jax.config.update("jax_numpy_rank_promotion", "raise")
trust(["toy_pipeline", "test_tuning"])  # their models' cards name networks of theirs
