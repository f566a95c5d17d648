from __future__ import annotations

import sys

import pytest
import torch

from fewstep.data.photographs import COLOURED, GREY, SIDE, load

pytest.importorskip("skimage")


def test_patches_overlap_by_half_and_cover_each_photograph():
    """From one 512x512 photograph averaged 2x2: its first patches are the picture's own pixels, half a patch apart."""
    from skimage import data

    patches, labels = load("train", size=10)
    assert labels is None and patches.shape[1:] == (3, 10, 10) and patches.dtype == torch.float32
    astronaut = torch.from_numpy(data.astronaut()).float().reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3)).permute(2, 0, 1)
    astronaut = astronaut / 127.5 - 1
    across = (SIDE - 10) // 5 + 1
    torch.testing.assert_close(patches[0], astronaut[:, :10, :10], rtol=0, atol=1e-6)
    torch.testing.assert_close(patches[across + 3], astronaut[:, 5:15, 15:25], rtol=0, atol=1e-6)


def test_the_split_is_by_photograph():
    train, held = (load(split, size=64, colour=False)[0] for split in ("train", "validation"))
    both, _ = load("all", size=64, colour=False)
    assert torch.equal(both, torch.cat([train, held])) and train.shape[1:] == (1, 64, 64)
    assert float(both.min()) >= -1 and float(both.max()) <= 1
    for names in (COLOURED, GREY):
        assert not set(names["train"]) & set(names["validation"])
    assert len(load("train", size=64)[0]) < len(train)  # the grey ones are not in colour


def test_grey_is_the_luma_of_colour():
    colour, grey = (load("validation", size=32, colour=c)[0] for c in (True, False))
    luma = 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2]
    torch.testing.assert_close(grey[: len(colour), 0], luma, rtol=0, atol=1e-5)


def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'train'"):
        load("trian")
    with pytest.raises(ValueError, match="2 to 256 pixels wide, got 300"):
        load(size=300)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"pip install 'fewstep\[photos\]'"):
        load()
