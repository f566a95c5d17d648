"""The walk through a folder: links, hidden parts, and what is counted."""

from __future__ import annotations

import pytest
from PIL import Image

from fewstep.data.open import open_data
from fewstep.data.walk import found_below, has_pictures


def write(path, color=(10, 200, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), color).save(path)


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    root, away = tmp_path / "root", tmp_path / "away"
    write(root / "dogs" / "1.png")
    write(away / "cats" / "deep" / "2.png")
    (root / "cats").symlink_to(away / "cats")
    (root / "dogs" / "up").symlink_to(root)
    (away / "cats" / "round").symlink_to(away / "cats" / "deep")  # another way to the same folder, and no circle
    (root / "dogs" / "3.png").symlink_to(away / "cats" / "deep" / "2.png")
    (root / "dogs" / "gone.png").symlink_to(tmp_path / "nothing")
    found = found_below(root)
    names = [path.relative_to(root).as_posix() for path in found.pictures]
    assert names == ["cats/deep/2.png", "cats/round/2.png", "dogs/1.png", "dogs/3.png"] and found.loops == 1
    assert found.skipped() == "1 other files (1 .png), 1 links in a circle"
    with pytest.warns(UserWarning, match=r"^skipped in .*: 1 other files \(1 .png\), 1 links in a circle$"):
        data = open_data(root, labels=True, split="all")
    assert data.class_names == ("cats", "dogs") and sorted(data.labels.tolist()) == [0, 0, 1, 1]


def test_hidden_parts_are_not_entered_and_every_suffix_is_read(tmp_path):
    for name in (".git/a.png", "b/.c/d.png", "b/.e.png"):
        write(tmp_path / name)
    assert not has_pictures(tmp_path) and found_below(tmp_path).hidden == 3
    for suffix in ("png", "JPG", "tga", "ico", "webp", "TIFF", "jp2"):
        write(tmp_path / f"picture.{suffix}")
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "table.csv").write_text("")
    (tmp_path / "README").write_text("")
    found = found_below(tmp_path)
    assert len(found.pictures) == 7 and has_pictures(tmp_path)
    assert found.skipped() == "3 other files (1 without a suffix, 1 .md, 1 .csv), 3 hidden"


def test_captions_are_not_left_out_where_they_are_read(tmp_path):
    write(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_text("a cat")
    (tmp_path / "dog.txt").write_text("a dog")
    found = found_below(tmp_path)
    assert found.skipped() == "2 other files (2 .txt)" and found.skipped(captions=True) == "1 other files (1 .txt)"
