import http.client
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from human_server import Server

from dollar_jax.evaluate.human_study import QUESTIONS, read_answers

CHOICES = {question.key: "right" for question in QUESTIONS}


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    if hasattr(server, "process"):
        server.kill()


def test_a_killed_server_loses_no_answer_of_many_raters_at_once(server):
    url = server.start()
    acknowledged, enough = [], threading.Event()

    def rate(rater):
        for i in range(6):
            fields = CHOICES | {"rater": rater, "pair": f"{i:05d}-0"}
            try:
                urllib.request.urlopen(url, urllib.parse.urlencode(fields).encode(), timeout=10).close()
            except (OSError, http.client.HTTPException):  # before an answer, or in the middle of one
                return
            acknowledged.append((rater, fields["pair"]))
            if len(acknowledged) > 60:
                enough.set()
            time.sleep(0.2)  # so that it is killed before all is done

    threads = [threading.Thread(target=rate, args=(f"rater {i}",)) for i in range(30)]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    server.kill()
    for thread in threads:
        thread.join()
    assert 60 < len(acknowledged) < 180  # it was killed in the middle
    saved = [(answer["rater"], answer["pair"]) for answer in read_answers(server.answers)]
    assert set(acknowledged) <= set(saved)
    assert len(set(saved)) == len(saved)

    server.start()
    for rater in {rater for rater, _ in acknowledged}:
        page = urllib.request.urlopen(f"{url}?rater={urllib.parse.quote(rater)}").read().decode()
        done = sum(name == rater for name, _ in saved)
        assert f"Pair <b>{done + 1}</b> of 6" in page or "Thank you" in page

    results = server.run(f"--results={server.answers.with_name('rates.html')}")
    assert results.stdout.startswith(f"student against teacher: {len(saved)} pairs judged by ")
    assert results.stderr == ""
    assert "Winning rates" in server.answers.with_name("rates.html").read_text()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--results=rates.html"], "error: --answers={answers}: No such file or directory"),
        (["--videos=a"], "error: --prompts is missing; see --help"),
        (["--videos=a", "--prompts=p"], "error: --videos wants NAME=DIR for two models, not a"),
        (["--videos=a=x", "--videos=a=y", "--prompts=p"], "error: --videos wants NAME=DIR for two models, not a=x a=y"),
        (["--videos=a=x", "--videos=b=y", "--prompts=p"], "error: --prompts=p: No such file"),
    ],
)
def test_mistakes_are_one_line(server, flags, line):
    result = server.run(*flags)
    assert (result.returncode, result.stdout) == (2, "")
    (error,) = result.stderr.splitlines()
    assert error.startswith(line.format(answers=server.answers))


def test_a_port_in_use_is_one_line(server):
    server.start()
    result = server.run(*server.folders, f"--port={server.port}")
    assert result.returncode == 2
    where = f"--host=127.0.0.1 --port={server.port}"
    assert result.stderr == f"error: {where}: Address already in use; take another --port\n"


def test_lines_that_are_no_answers_are_named_once_and_counted_out(server, tmp_path):
    url = server.start()
    fields = CHOICES | {"rater": "ann", "pair": "00000-0"}
    urllib.request.urlopen(url, urllib.parse.urlencode(fields).encode(), timeout=10).close()
    server.kill()
    with server.answers.open("ab") as file:
        file.write(b'{"rater": "bob"}\n[1]\n\xff\x1b[2J\n')
    server.start(stderr=subprocess.PIPE)
    for _ in range(3):
        urllib.request.urlopen(f"{url}?rater=ann", timeout=10).close()
    server.kill()
    named = f"warning: {server.answers}: lines 2, 3, 4 are not answers and do not count\n"
    assert server.errors == named

    results = server.run(f"--results={tmp_path / 'rates.html'}")
    assert (results.returncode, results.stderr) == (0, named)
    assert results.stdout.startswith("student against teacher: 1 pair judged by 1 rater\n")


def test_an_address_of_ipv6(server):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    assert server.start("--host=::1") == f"http://[::1]:{server.port}/"
    assert urllib.request.urlopen(server.url, timeout=10).status == 200


def test_many_such_lines_are_counted(server, tmp_path):
    server.answers.write_bytes(b"junk\n" * 1000)
    results = server.run(f"--results={tmp_path / 'rates.html'}")
    assert results.returncode == 2
    assert results.stderr.splitlines() == [
        f"warning: {server.answers}: lines 1, 2, 3, 4, 5 and 995 more are not answers and do not count",
        f"error: --answers={server.answers} has no answers yet",
    ]


def test_results_do_not_take_the_place_of_the_answers(server, tmp_path):
    server.answers.write_text("people's work\n")
    (tmp_path / "link.html").symlink_to(server.answers)
    for name in (server.answers, f"{tmp_path}/./{server.answers.name}", tmp_path / "link.html"):
        results = server.run(f"--results={name}")
        assert (results.returncode, results.stdout) == (2, "")
        assert results.stderr.startswith(f"error: --results={name} is the file of answers")
    assert server.answers.read_text() == "people's work\n"


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb"])
def test_names_of_models_are_text(server, name):
    result = server.run(f"--videos={name}=x", "--videos=b=y", "--prompts=p")
    assert result.returncode == 2
    assert result.stderr == f"error: --videos: the name {name!r} has characters that cannot be printed\n"
