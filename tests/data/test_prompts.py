import pytest

from dollar_jax.data.prompts import read_prompts
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
