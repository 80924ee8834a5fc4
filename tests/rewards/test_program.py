"""Rewards of other processes."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dollar_jax.importing import UserError
from dollar_jax.rewards.judge import Judge

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 6, 3), np.uint8)
CAPTIONS = ["one", "zwei", 'a "quoted" caption']
# The format of version 1: 10 bytes, the last two of them the length of a header, and then the pixels.
WITHOUT_NUMPY = """
import json, sys
for calls, line in enumerate(sys.stdin):
    request = json.loads(line)
    content = open(request["frames"], "rb").read()
    header = eval(content[10 : 10 + content[8] + 256 * content[9]])
    assert header == {"descr": "|u1", "fortran_order": False, "shape": (3, 2, 4, 6, 3)}, header
    pixels = content[10 + content[8] + 256 * content[9] :]
    size = len(pixels) // 3
    means = [sum(pixels[i * size : (i + 1) * size]) / size for i in range(3)]
    print(json.dumps([mean + len(text) + 1000 * calls for mean, text in zip(means, request["captions"])]), flush=True)
"""


def judge(code, **fields):
    return Judge({"name": "program", "options": {"command": [sys.executable, "-c", code]}, **fields})


def test_requests_and_answers():
    reward = judge(WITHOUT_NUMPY)
    wanted = FRAMES.mean((1, 2, 3, 4)) + [len(caption) for caption in CAPTIONS]
    np.testing.assert_allclose(reward(FRAMES, CAPTIONS), wanted, rtol=1e-5)
    np.testing.assert_allclose(reward(FRAMES, CAPTIONS), wanted + 1000, rtol=1e-5)  # the same process


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import sys; print('first\\nno weights', file=sys.stderr); exit(3)",
            "ended with status 3, its last words: no w",
        ),
        ("pass", "ended with status 0, without a word on standard error"),
        ("input(); print('Loading ...', flush=True); input()", "answered 'Loading ...', no JSON list"),
        ("input(); print('{}', flush=True); input()", "answered '{}', no JSON list"),
        ("input(); print('[1, 2]', flush=True); input()", r"returned a list of shape \(2,\), wanted \(3,\)"),
        ("input(); print('[1, 2, NaN]', flush=True); input()", "returned nan for 1 of 3 videos"),
    ],
)
def test_faults(code, words):
    with pytest.raises(UserError, match=f"^reward program.* {words}"):
        judge(code)(FRAMES, CAPTIONS)


def test_one_that_hangs_is_killed_with_its_children(tmp_path):
    code = f"""
import os, subprocess, sys
child = subprocess.Popen(["sleep", "60"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
child.wait()
"""
    reward, start = judge(code, timeout=5), time.monotonic()
    with pytest.raises(UserError, match="reward program took longer than 5 s"):
        reward(FRAMES, CAPTIONS)
    assert time.monotonic() - start < 13
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert gone(pid)


def gone(pid):
    """Whether the process ended, or is about to."""
    status = Path(f"/proc/{pid}/status")
    for _ in range(50):
        try:
            if "State:\tZ" in status.read_text():
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_no_such_program():
    with pytest.raises(UserError, match=r"reward program: ./nothing cannot be started \(No such file or directory\)"):
        Judge({"name": "program", "options": {"command": ["./nothing"]}})
