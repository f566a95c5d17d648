"""Files and folders, whole or not at all."""

from __future__ import annotations

import os

import pytest

from fewstep.core import files
from fewstep.core.files import claim_folder, new_folder, write


def test_bytes_and_text_as_they_are(tmp_path):
    assert write(tmp_path / "a", b"\x00\r\n").read_bytes() == b"\x00\r\n"
    assert write(tmp_path / "a", "\r\n\u03c3").read_bytes() == "\r\n\u03c3".encode()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = write(tmp_path / "a.txt", "old")

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, broken, fail)
    with pytest.raises(OSError, match="no space"):
        write(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    path = write(tmp_path / "a.txt", "x")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_is_whole_or_absent(tmp_path, empty):
    place = tmp_path / "deep" / "place" if not empty else tmp_path / "place"
    if empty:
        place.mkdir()
    with pytest.raises(RuntimeError, match="halfway"), new_folder(place) as fresh:
        write(fresh / "one", "1")
        assert not place.exists() or not list(place.iterdir())
        raise RuntimeError("halfway")
    assert [path for path in tmp_path.rglob("*") if path not in (place, place.parent)] == []
    with new_folder(place) as fresh:
        write(fresh / "one", "1")
    assert [path.name for path in place.iterdir()] == ["one"] and os.listdir(place.parent) == ["place"]
    with pytest.raises(ValueError, match="not empty"), new_folder(place):
        pytest.fail("it is not to be filled")
    with pytest.raises(ValueError, match="one is a file"):
        claim_folder(place / "one")
