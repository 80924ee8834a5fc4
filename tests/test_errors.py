import pytest

from dollar_jax.convert import tensors
from dollar_jax.errors import UserError, first_line


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n  a fault\nand its trace")) == "a fault"
    assert first_line(RuntimeError(" \n")) == "RuntimeError"
    assert first_line(OSError("x" * 500)) == "x" * 200


def test_a_library_that_says_nothing_is_one_line_too(tmp_path, monkeypatch):
    def silent(*arguments, **options):
        raise OSError

    (tmp_path / "x.safetensors").touch()
    monkeypatch.setattr(tensors, "safe_open", silent)
    with pytest.raises(UserError, match="is damaged, copy it again: OSError"):
        tensors.open_file(tmp_path / "x.safetensors")
