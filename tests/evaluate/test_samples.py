"""Folders of videos that strangers made."""

import os

import pytest

from dollar_jax.errors import UserError
from dollar_jax.evaluate.samples import Name, find_samples

MP4 = b"\0\0\0\x18ftypisom" + bytes(12)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "00000-0.mp4").write_bytes(MP4)
    return folder


def test_only_the_names_that_sample_writes_count(folder):
    names = ["000000-0", "000007-0", "00000-00", "\N{ARABIC-INDIC DIGIT ZERO}" * 5 + "-0", "notes"]
    for name in [f"{name}.mp4" for name in names] + ["00001-0"]:
        (folder / name).write_bytes(b"another file, and no second video 0 of prompt 0")
    (folder / "100000-0.mp4").write_bytes(MP4)
    assert find_samples(folder) == {
        Name(0, 0): folder / "00000-0.mp4",
        Name(100_000, 0): folder / "100000-0.mp4",
    }


def test_links_within_the_folder_are_followed_and_others_refused(folder, tmp_path):
    (folder / "00001-0.mp4").symlink_to("00000-0.mp4")
    assert len(find_samples(folder)) == 2
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "00000-0.mp4").write_bytes(MP4)
    (folder / "00002-0.mp4").symlink_to(elsewhere / "00000-0.mp4")
    with pytest.raises(UserError, match=r"points to '00002-0\.mp4', outside itself"):
        find_samples(folder)
    linked = tmp_path / "linked"  # the user's own link, to the folder itself
    linked.symlink_to(elsewhere)
    assert len(find_samples(linked)) == 1


@pytest.mark.parametrize("content", [b"", b"\x1a\x45\xdf\xa3 Matroska ....", b"RIFF....AVI LIST", b"<html>ftyp</html>"])
def test_what_is_no_mp4_is_refused_at_once(folder, content):
    (folder / "00003-1.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"00003-1\.mp4 is not an MP4 video"):
        find_samples(folder)


def test_what_is_no_file_is_refused_without_waiting_for_it(folder):
    os.mkfifo(folder / "00004-0.mp4")  # to open it would wait for ever
    with pytest.raises(UserError, match=r"00004-0\.mp4 is not an MP4 video"):
        find_samples(folder)
    (folder / "00004-0.mp4").unlink()
    (folder / "00004-0.mp4").mkdir()
    with pytest.raises(UserError, match=r"00004-0\.mp4 is not an MP4 video"):
        find_samples(folder)
    (folder / "00004-0.mp4").rmdir()
    (folder / "00004-0.mp4").symlink_to("00009-0.mp4")
    with pytest.raises(UserError, match=r"00004-0\.mp4 is not an MP4 video"):
        find_samples(folder)
