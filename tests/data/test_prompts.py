import pytest

from dollar_jax.data.prompts import count_prompts, read_prompts, stream_prompts
from dollar_jax.errors import UserError


def test_empty_lines_are_no_prompts(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a red ring\n\n  two words \n", encoding="utf-8")
    assert read_prompts(path) == ["a red ring", "two words"]


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("one\u2028two\x0bthree\x0cfour\x85five\r\nsix".encode("utf-8-sig"))
    assert read_prompts(path) == ["one\u2028two\x0bthree\x0cfour\x85five", "six"]


@pytest.mark.parametrize("content", [None, b"\n \n", b"\xff\xfe\xfa"])
def test_a_file_without_prompts_is_refused(tmp_path, content):
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"--prompts=.*p\.txt"):
        read_prompts(path)


def test_json_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes('"one"\n\n{"caption": " two\\nlines ", "file": "a.mp4"}\r\n""\n"\\u00fc"'.encode("utf-8-sig"))
    assert list(stream_prompts(path)) == ["one", "two\nlines", "ü"]
    assert count_prompts(path) == 3


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("p.txt", b"caf\xe9", "is not UTF-8 text: invalid continuation byte"),
        ("p.txt", b"w\0o\0r\0d\0s\0", "has a NUL byte: it is not UTF-8 text"),
        ("p.txt", b"x" * 100_001, "is longer than 100,000 bytes"),
        ("p.jsonl", b"a cat", "is not JSON: "),
        ("p.jsonl", b"[" * 90_000, "is not JSON: "),
        ("p.jsonl", b'{"file": "a.mp4"}', 'is neither "a prompt" nor {"caption": "a prompt"}'),
        ("p.jsonl", b'"\\ud800"', "is not UTF-8 text: surrogates not allowed"),
        ("p.jsonl", b'"\\u0000"', "has a NUL byte"),
    ],
)
def test_a_strange_line_is_named(tmp_path, name, line, words):
    path = tmp_path / name
    path.write_bytes(b'"fine"\n\n' + line + b'\n"fine"\n')
    with pytest.raises(UserError) as refusal:
        count_prompts(path)
    assert str(refusal.value).startswith(f"{path}, line 3 {words}")
    assert "\n" not in str(refusal.value)


def test_a_long_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\ntwo\n")
    lines = stream_prompts(path)
    assert next(lines) == "one"
    with path.open("a") as file:
        file.write("three\n")
    assert list(lines) == ["two", "three"]


@pytest.mark.parametrize("name", ["nowhere.txt", "."])
def test_no_file(tmp_path, name):
    with pytest.raises(UserError, match="is no file"):
        count_prompts(tmp_path / name)
