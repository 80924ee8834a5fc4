"""Names and text from strangers."""

import pytest

from dollar_jax.errors import UserError
from dollar_jax.reading import inside, read_lines


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "outside").write_text("a secret")
    folder = tmp_path / "folder"
    (folder / "more").mkdir(parents=True)
    (folder / "file").touch()
    (folder / "link").symlink_to("file")
    (folder / "more" / "up").symlink_to("../file")
    (folder / "out").symlink_to("../outside")
    (folder / "above").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.mark.parametrize(
    ("name", "path"),
    [("file", "file"), ("link", "file"), ("more/up", "file"), ("missing", "missing"), ("", "."), ("a..b", "a..b")],
)
def test_names_inside(folder, name, path):
    assert inside(folder, name) == folder / path
    (folder.parent / "alias").symlink_to(folder)
    assert inside(folder.parent / "alias", name) == folder / path


OUTSIDE = ["../outside", "/etc/passwd", "out", "above/outside", "more/../file", "..\\outside"]


@pytest.mark.parametrize("name", [*OUTSIDE, "~/x", "a\0b", "\ud800", "loop"])
def test_names_outside_and_no_names(folder, name):
    with pytest.raises(UserError) as caught:
        inside(folder, name)
    assert "\n" not in str(caught.value)


def test_only_the_blobs_of_the_same_snapshot_are_inside(folder, tmp_path):
    model = tmp_path / "models--x"
    (model / "snapshots" / "0a1b" / "vae").mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "blobs" / "c3f0").touch()
    (model / "snapshots" / "0a1b" / "vae" / "weights").symlink_to("../../../blobs/c3f0")
    (model / "snapshots" / "0a1b" / "out").symlink_to("../../../outside")
    assert inside(model / "snapshots" / "0a1b", "vae/weights") == model / "blobs" / "c3f0"
    assert inside(model / "snapshots" / "0a1b" / "vae", "weights") == model / "blobs" / "c3f0"
    with pytest.raises(UserError, match="outside itself"):
        inside(model / "snapshots" / "0a1b", "out")
    # A stranger's folder may look like that cache and have a link for the blobs.
    (model / "blobs" / "c3f0").unlink()
    (model / "blobs").rmdir()
    (model / "blobs").symlink_to(folder)
    (model / "snapshots" / "0a1b" / "secret").symlink_to("../../blobs/file")
    with pytest.raises(UserError, match="outside itself"):
        inside(model / "snapshots" / "0a1b", "secret")


def test_lines(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\x0b\xe2\x80\xa8three\rfour\n")
    assert read_lines(path) == ["one", "two\x0b\u2028three\rfour", ""]
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="text is not UTF-8 text"):
        read_lines(path)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=str(missing)):
            read_lines(missing)
