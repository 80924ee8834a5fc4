"""python -m dollar_jax.evaluate vbench --results=FILE.json: VBench's results as quality, semantic and total score.

FILE.json is what VBench writes, {"subject_consistency": [0.95, ...], ...}: values in 0..1 of its sixteen dimensions.
"""

import json

from absl import flags

from dollar_jax.command import required
from dollar_jax.evaluate import vbench
from dollar_jax.files import write_atomically
from dollar_jax.importing import UserError

_RESULTS = flags.DEFINE_string("results", None, "VBench's result file; the scores are printed.")
_OUT = flags.DEFINE_string("out", None, "A JSON file for the scores, too.")


def main() -> None:
    required(_RESULTS)
    _aggregate()


def _aggregate() -> None:
    values = vbench.read_results(_RESULTS.value)
    scores = vbench.scores(values)
    print(vbench.table(values, scores))
    if lacking := vbench.missing(values):
        raise UserError(
            f"--results={_RESULTS.value} has no {', '.join(lacking)}: without them there is no"
            f" {' and no '.join(name for name in (*vbench.GROUPS, 'total') if name not in scores)} score"
        )
    text = json.dumps(scores)
    if _OUT.value:
        write_atomically(_OUT.value, text + "\n")
    print(text)
