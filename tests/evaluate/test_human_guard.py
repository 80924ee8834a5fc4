"""The page of `evaluate human` among people who mean it no good: over real sockets, in this process."""

import re
import socket
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
from waitress import wasyncore

from dollar_jax.evaluate import human_guard
from dollar_jax.evaluate.human_app import create_app
from dollar_jax.evaluate.human_guard import LIMIT, listen, own_names
from dollar_jax.evaluate.human_study import QUESTIONS, Pair, Study, agenda, create, read_answers

CUT = 0
CHOICES = {question.key: "left" for question in QUESTIONS}


@pytest.fixture
def study(tmp_path):
    videos = {model: tmp_path / f"{model}.mp4" for model in ("student", "teacher")}
    for path in videos.values():
        path.write_bytes(b"\0\0\0\x10ftypisom" + bytes(4))
    study = Study(("student", "teacher"), [Pair("00000-0", "a prompt", videos)], 50, tmp_path / "answers.jsonl")
    create(study.answers)
    return study


@pytest.fixture
def client(study):
    return create_app(study, own_names("127.0.0.1")).test_client()


@contextmanager
def serving(study):
    """The port of a server."""
    server = listen(create_app(study, own_names("127.0.0.1")), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map))
        thread.join()
        server.task_dispatcher.shutdown()


def ask(port, method="GET", path="/?rater=ann", body=None, headers=()):
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, dict(headers))
        return connection.getresponse().status
    except ConnectionError:  # closed before all was sent
        return CUT
    finally:
        connection.close()


def answer(study):
    return CHOICES | {"rater": "ann", "pair": agenda(study, "ann")[0].pair.name}


def test_a_request_has_a_few_kilobytes(study):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    chunks = [b"a=" + b"b" * LIMIT] * 4
    with serving(study) as port:
        assert ask(port) == 200
        assert ask(port, headers={"X-Long": "x" * LIMIT}) == 431
        assert ask(port, path="/?rater=" + "x" * LIMIT) == 431
        assert ask(port, "POST", "/", b"a=" + b"b" * LIMIT, form) in (413, CUT)
        assert ask(port, "POST", "/", iter(chunks), form | {"Transfer-Encoding": "chunked"}) in (413, CUT)
        assert ask(port) == 200


def test_a_form_has_few_fields(client):
    parts = "".join(f'--x\r\nContent-Disposition: form-data; name="{i}"\r\n\r\n\r\n' for i in range(60))
    assert len(parts) < LIMIT
    sent = client.post("/", data=parts + "--x--\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert sent.status_code == 413


@pytest.mark.parametrize(
    "head", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 90"]
)
def test_a_held_connection_is_closed_though_a_byte_comes_now_and_then(study, monkeypatch, head):
    monkeypatch.setattr(human_guard, "TIMEOUT", 1)
    with serving(study) as port, socket.create_connection(("127.0.0.1", port), timeout=0.25) as held:
        held.sendall(head)
        begun = time.monotonic()
        while time.monotonic() - begun < 10:
            try:
                if head:  # else it says nothing at all
                    held.sendall(b"x")
                if held.recv(1000) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert time.monotonic() - begun < 6
        assert ask(port) == 200


def test_those_who_hold_all_connections_do_not_shut_out_others_for_long(study, monkeypatch):
    monkeypatch.setattr(human_guard, "TIMEOUT", 1)
    monkeypatch.setattr(human_guard, "CONNECTIONS", 10)
    with serving(study) as port:
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        try:
            assert ask(port) == 200
        finally:
            for connection in held:
                connection.close()


def test_every_answer_has_the_headers(client, study):
    answers = [
        client.get("/"),
        client.get("/?rater=ann"),
        client.post("/", data={"rater": "ann", "pair": "00000-0"}),
        client.get("/nothing"),
        client.get("/video?rater=ann&pair=00000-0&side=left"),
        client.get("/?rater=" + "x" * 100),
        client.post("/", data=answer(study)),
    ]
    for got in answers:
        policy = dict(part.strip().partition(" ")[::2] for part in got.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["form-action"] == policy["media-src"] == "'self'"
        assert "unsafe" not in got.headers["Content-Security-Policy"]
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        assert got.headers["X-Frame-Options"] == "DENY"
        # Not no-referrer: browsers would send the form with `Origin: null`.
        assert got.headers["Referrer-Policy"] == "same-origin"
        assert got.headers["Cross-Origin-Opener-Policy"] == got.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert got.headers["Cache-Control"] == "no-store"


def test_styles_and_scripts_run_by_a_number_used_once(client):
    pages = [client.get("/?rater=ann") for _ in range(2)]
    nonces = [set(re.findall(r'nonce="([^"]{20,})"', page.text)) for page in pages]
    assert [len(found) for found in nonces] == [1, 1]
    assert nonces[0] != nonces[1]
    for page, (nonce,) in zip(pages, nonces, strict=True):
        assert f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'" in page.headers["Content-Security-Policy"]
        assert not re.search(r"<(style|script)>| style=| on\w+=", page.text)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 303),  # no browser
        ({"Origin": "http://localhost"}, 303),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, 303),
        ({"Sec-Fetch-Site": "none"}, 303),  # the form sent again by the reload button
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:9000"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, 403),
    ],
)
def test_only_this_page_s_own_form_is_taken(client, study, headers, status):
    assert client.post("/", data=answer(study), headers=headers).status_code == status
    assert len(read_answers(study.answers)) == (status == 303)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost", 200), ("127.0.0.1:8000", 200), ("LOCALHOST:9", 200), ("[::1]:8000", 200)),
        *(("evil.example", 403), ("127.0.0.1.evil.example:8000", 403), ("localhost.", 403), ("[::2]", 403)),
        *(("a@localhost", 403), ("localhost:x", 403), ("", 403)),
    ],
)
def test_at_a_loopback_address_only_its_own_names_are_answered(client, host, status):
    """A name of the attacker's that he lets point to 127.0.0.1 (DNS rebinding) makes his page one of this origin."""
    assert client.get("/?rater=ann", headers={"Host": host}).status_code == status


def test_names_of_the_machine_are_known_only_to_it():
    assert own_names("127.0.0.1") == own_names("localhost") == {"127.0.0.1", "::1", "localhost"}
    assert "127.0.0.2" in own_names("127.0.0.2")
    assert own_names("0.0.0.0") == set()  # by whatever name others reach it


def test_the_server_does_not_say_what_it_is(study):
    with serving(study) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        headers = dict(connection.getresponse().getheaders())
        connection.close()
    assert "Server" not in headers


def test_a_name_of_several_addresses_has_one_port(study, monkeypatch):
    def find(host, *rest, **options):
        numbers = ("127.0.0.1", "::1") if host == "localhost" else (host,)
        return [address for number in numbers for address in getaddrinfo(number, *rest, **options)]

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", find)
    server = listen(create_app(study, frozenset()), "localhost", 0)
    assert server.effective_port
    server.task_dispatcher.shutdown()
    wasyncore.close_all(server._map)
