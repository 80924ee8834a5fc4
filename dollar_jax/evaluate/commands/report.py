"""python -m dollar_jax.evaluate report --workdir=W: a page with the results of runs of dollar_jax.main.

    ... report --workdir=W                                    writes W/report again, from the files of the run
    ... report --workdir=S0 --workdir=S1 --out=DIR            one page for several seeds: mean and spread
    ... report --workdir=vsd=V0 --workdir=vsd=V1 --workdir=full=F0 --out=DIR    named variants, each with its seeds

index.html works without network access; report.md and report.json have the numbers.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from dollar_jax.cli import required
from dollar_jax.errors import UserError

_WORKDIR = flags.DEFINE_multi_string("workdir", [], "Folder of a finished run, or VARIANT=FOLDER; any number of times.")
_OUT = flags.DEFINE_string("out", None, "Folder to write; by default W/report if there is one workdir.")


def main() -> None:
    required(_WORKDIR)
    named = [workdir.rpartition("=") for workdir in _WORKDIR.value]
    runs = [(variant, Path(folder)) for variant, _, folder in named]
    if len(runs) > 1 and not _OUT.value:
        raise UserError("--out is missing: give the folder for the report of several runs")
    if len({bool(variant) for variant, _ in runs}) > 1:
        raise UserError("either all of --workdir name a variant, --workdir=VARIANT=FOLDER, or none")

    from dollar_jax.evaluate.report_runs import combine

    out = Path(_OUT.value) if _OUT.value else runs[0][1] / "report"
    combine(runs, out, shlex.join(["python", "-m", "dollar_jax.evaluate", "report", *sys.argv[1:]]))
    print(f"report: {out / 'index.html'}")
