"""Rewards of other processes."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dollar_jax.errors import UserError
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
    return Judge({"name": "executable", "options": {"command": [sys.executable, "-c", code]}, **fields})


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
            "ended with status 3, its standard error ends with: no w",
        ),
        ("pass", "ended with status 0, without a word on standard error"),
        ("input(); print('Loading ...', flush=True); input()", "answered 'Loading ...', not a JSON list"),
        ("input(); print('{}', flush=True); input()", "answered '{}', not a JSON list"),
        ("input(); print('[1, 2]', flush=True); input()", r"returned a list of shape \(2,\), wanted \(3,\)"),
        ("input(); print('[1, 2, NaN]', flush=True); input()", "returned nan for 1 of 3 videos"),
        ("input(); print('[1, 2, \"3\"]', flush=True); input()", "not a JSON list of numbers"),
        ("input(); print('[1, 2, true]', flush=True); input()", "not a JSON list of numbers"),
        ("input(); print('[1, 2, null]', flush=True); input()", "not a JSON list of numbers"),
        ("input(); print('[[1], [2], [3]]', flush=True); input()", "not a JSON list of numbers"),
        ("input(); print('[' * 1200, flush=True); input()", "not a JSON list of numbers"),
        ("input(); print('[1, 2, ' + '3' * 400 + ']', flush=True); input()", "returned inf for 1 of 3 videos"),
        (
            "import os; input(); os.write(1, bytes([91, 255, 93, 10])); input()",
            r"answered '\[\\\\xff\]', not a JSON list of numbers",
        ),
        ("import os; input(); os.write(1, b'[1, 2'); os._exit(4)", "ended with status 4"),
        ("import sys; print('\\x1b[2Jgone', file=sys.stderr); exit(3)", r"its standard error ends with: \[2Jgone$"),
    ],
)
def test_faults(code, words):
    with pytest.raises(UserError, match=f"^reward executable.* {words}") as caught:
        judge(code)(FRAMES, CAPTIONS)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        # twice at once; the second one on its way when the first is read; much later, when the next request waits.
        ("for line in sys.stdin: os.write(1, b'[1, 2, 3]\\n[4, 5, 6]\\n')", 1),
        ("for line in sys.stdin: os.write(1, b'[1, 2, 3]\\n'); os.write(1, b'[4, 5, 6]\\n')", 2),
        ("for line in sys.stdin: os.write(1, b'[1, 2, 3]\\n'); time.sleep(1); os.write(1, b'[4, 5, 6]\\n')", 2),
        # before it has read the first request
        ("os.write(1, b'[1, 2, 3]\\n')\nfor line in sys.stdin: os.write(1, b'[4, 5, 6]\\n')", 1),
        ("os.write(1, b'[1, 2, 3]\\n'); sys.stdin.read()", 1),
        ("time.sleep(1); os.write(1, b'[1,')\nfor line in sys.stdin: os.write(1, b'2, 3]\\n')", 1),
        # part of another answer behind the first
        ("for line in sys.stdin: os.write(1, b'[1, 2, 3]\\n[4,')", 1),
    ],
)
def test_an_answer_that_nobody_asked_for_is_never_a_reward(code, calls):
    reward = judge(f"import os, sys, time\n{code}")
    found = []

    def ask():
        for _ in range(calls):
            found.append(reward(FRAMES, CAPTIONS).tolist())

    with pytest.raises(UserError, match=r"^reward executable: the program .*: write one line for each request"):
        ask()
    assert found in ([], [[1, 2, 3]])
    with pytest.raises(UserError, match="ended with status -9"):  # nothing of it can be taken for an answer any more
        reward(FRAMES, CAPTIONS)


def test_an_answer_without_an_end_is_refused_before_it_fills_the_memory():
    code = "import os\ninput()\nwhile True: os.write(1, b'1' * 65536)"
    with pytest.raises(UserError, match=r"answered 3 videos by more than 4\d\d\d bytes without an end of line"):
        judge(code, timeout=20)(FRAMES, CAPTIONS)


def test_numbers_of_any_length_fit():
    code = "input(); print('[' + ', '.join(['0.' + '3' * 300] * 3) + ']', flush=True); input()"
    np.testing.assert_allclose(judge(code)(FRAMES, CAPTIONS), 1 / 3, rtol=1e-6)


def test_of_many_words_the_last_are_shown():
    code = "import sys; sys.stderr.write('x' * 10**7 + '\\nno memory ' + 'y' * 1000); exit(1)"
    with pytest.raises(UserError, match=r"its standard error ends with: no memory y+$") as caught:
        judge(code)(FRAMES, CAPTIONS)
    assert len(str(caught.value)) < 400


def test_one_that_hangs_is_killed_with_its_children(tmp_path):
    code = f"""
import os, subprocess, sys
child = subprocess.Popen(["sleep", "60"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
child.wait()
"""
    reward, start = judge(code, timeout=5), time.monotonic()
    with pytest.raises(UserError, match="reward executable took longer than 5 s"):
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
    with pytest.raises(
        UserError, match=r"reward executable: ./nothing cannot be started \(No such file or directory\)"
    ):
        Judge({"name": "executable", "options": {"command": ["./nothing"]}})
