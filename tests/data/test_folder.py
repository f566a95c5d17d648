from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data.open import open_data


def write(path, size=(6, 4), color=(10, 200, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def test_all_images_below_the_folder(tmp_path):
    write(tmp_path / "a.png", color=(0, 0, 255))
    write(tmp_path / "deep" / "er" / "b.PNG", color=(255, 255, 0))
    write(tmp_path / ".hidden.png", color=(1, 1, 1))
    (tmp_path / "notes.txt").write_text("no image")
    data = open_data(tmp_path, split="all", seed=1)
    assert data.spec.shape == (3, 4, 6) and data.spec.n == 2 and data.spec.value_range == (-1.0, 1.0)
    assert data.spec.name == tmp_path.name and data.spec.classes is None
    colors = [torch.tensor([-1.0, -1.0, 1.0]), torch.tensor([1.0, 1.0, -1.0])]
    for image, row in zip(data.images, np.random.default_rng(1).permutation(2), strict=True):
        assert torch.equal(image, colors[row][:, None, None].expand(3, 4, 6))


def test_subfolders_become_classes_when_asked(tmp_path):
    for name, color in [("dog", 3), ("cat", 2), ("cat", 1)]:
        write(tmp_path / name / "x" / f"{color}.png", color=color, mode="L")
    data = open_data(tmp_path, split="all", mode="L", labels=True)
    assert data.class_names == ("cat", "dog") and data.spec.classes == 2
    seen = {round(float((image.mean() + 1) * 127.5)): int(label) for image, label in zip(*data[:], strict=True)}
    assert seen == {1: 0, 2: 0, 3: 1}
    assert open_data(tmp_path, split="all").labels is None
    write(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="1 images lie outside of them, 'loose.png' first"):
        open_data(tmp_path, labels=True)


def test_crop_keeps_the_centre_and_resize_averages(tmp_path):
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 100
    wide[1::2, 16:32] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    data = open_data(tmp_path, split="all", size=16, mode="L")
    assert data.raw[0, 0].tolist() == wide[:, 16:32].tolist()  # the centre, untouched
    small = open_data(tmp_path, split="all", size=2, mode="L").raw[0, 0].int()
    assert small.shape == (2, 2) and (small - 150).abs().max() < 15  # a mean over rows, not one of them


def test_mixed_sizes_need_a_size(tmp_path):
    for index, size in enumerate([(6, 4), (6, 4), (8, 5)]):
        write(tmp_path / f"{index}.png", size=size)
    with pytest.raises(ValueError, match=r"4x6 \(2\), 5x8 \(1\); give size=4 "):
        open_data(tmp_path, split="all")
    assert open_data(tmp_path, split="all", size=4).spec.shape == (3, 4, 4)


def test_broken_images_are_named_skipped_and_counted(tmp_path):
    for index in range(4):
        write(tmp_path / f"{index}.png")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"skipped 2 of 6 images in .*\.png \(.*; .*\.png \(") as caught:
        data = open_data(tmp_path, split="all")
    assert "empty.png" in str(caught[0].message) and "half.png" in str(caught[0].message)
    assert data.spec.n == 4 and sorted(data.skipped) == ["empty.png", "half.png"]


def test_a_broken_file_does_not_move_the_others_between_splits(tmp_path):
    for index in range(20):
        write(tmp_path / f"{index:02}.png", color=index, mode="L")
    before = set(open_data(tmp_path, split="validation", mode="L", validation=0.25).raw[:, 0, 0, 0].tolist())
    (tmp_path / "00.png").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = set(open_data(tmp_path, split="validation", mode="L", validation=0.25).raw[:, 0, 0, 0].tolist())
    assert len(before) == 5 and before - {0} == after


def test_folders_without_images_raise(tmp_path):
    with pytest.raises(ValueError, match="no images in .* looked for .*.jpeg"):
        open_data(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"none of the 1 images in .* could be read: a.png \(cannot identify"):
        open_data(tmp_path, split="all")
    with pytest.raises(ValueError, match="unknown mode 'RGBA'"):
        open_data(tmp_path, mode="RGBA")
    with pytest.raises(ValueError, match="size must be a positive number"):
        open_data(tmp_path, size=0)


def test_deep_greys_have_one_span_in_every_split(tmp_path):
    for i, top in enumerate((300, 800, 4095, 2000)):
        Image.fromarray(np.linspace(0, top, 16).reshape(4, 4).astype(np.uint16)).save(tmp_path / f"{i}.tif")
    found = {}
    for split in ("all", "train", "validation"):
        with pytest.warns(UserWarning, match="0 was taken as black and 4095 as white"):
            found[split] = open_data(tmp_path, split=split, mode="L", validation=0.25).raw
    assert torch.equal(torch.cat([found["train"], found["validation"]]), found["all"])
    assert sorted(found["all"].flatten(1).max(1).values.tolist()) == [18, 50, 125, 255]


def test_empty_class_folders_are_said(tmp_path):
    write(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    with pytest.warns(UserWarning, match="^the subfolders dog hold no picture and are no classes$"):
        data = open_data(tmp_path, split="all", labels=True)
    assert data.class_names == ("cat",)


def test_captions_beside_pictures(tmp_path):
    for i in range(4):
        write(tmp_path / "deep" / f"{i}.png", color=(i, i, i))
    (tmp_path / "deep" / "0.txt").write_text("A cat, asleep", "utf-8-sig")
    (tmp_path / "deep" / "1.txt").write_text("a dog\n", "utf-16")
    (tmp_path / "deep" / "2.txt").write_text("  \n")
    with pytest.warns(UserWarning, match="^2 pictures have no caption and get an empty one$"):
        data = open_data(tmp_path, split="all", captions=True)
    text = data.spec.text
    assert text.vocabulary == ("a", "asleep", "cat", "dog") and text.length == 3
    images, given = data.batch(torch.arange(4))
    greys = (images[:, 0, 0, 0] * 127.5 + 127.6).int().tolist()
    said = dict(zip(greys, map(text.words, given["text"].tolist()), strict=True))
    assert said == {0: "a cat asleep", 1: "a dog", 2: "", 3: ""}
    with pytest.warns(UserWarning, match="no caption"):
        assert open_data(tmp_path, split="validation", validation=0.5, captions=True).spec.text == text
    for path in (tmp_path / "deep").glob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match="none of 4 pictures has one: 0.txt would be that of 0.png"):
        open_data(tmp_path, captions=True)
