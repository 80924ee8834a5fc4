"""Signs of life of a compiler."""

import re
import time

from dollar_jax import compiling


def test_progress(capsys, monkeypatch):
    monkeypatch.setattr(compiling, "PATIENCE", 0.05)
    with compiling.progress("generator: compiling"):
        time.sleep(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "generator: compiling ..."
    assert re.fullmatch(r"generator: compiling still, \d+ s", lines[1])
    assert re.fullmatch(r"generator: compiling: done, \d+ s", lines[-1])
