"""Mirror images and crops by chance."""

from __future__ import annotations

import pytest
import torch

from fewstep.data.augment import Augment

IMAGES = torch.arange(2 * 4 * 6).float().reshape(2, 1, 4, 6)


def test_crops_lie_where_chance_says_and_in_the_centre_without_it():
    crop = Augment(crop=2)
    assert torch.equal(crop(IMAGES), IMAGES[:, :, 1:3, 2:4])
    chance = torch.tensor([[0.0, 0.999, 0.0], [0.999, 0.0, 0.0]])
    found = crop(IMAGES, chance)
    assert torch.equal(found[0], IMAGES[0, :, 0:2, 4:6]) and torch.equal(found[1], IMAGES[1, :, 2:4, 0:2])
    many = crop(IMAGES[:1].expand(900, 1, 4, 6), torch.rand(900, 3, generator=torch.Generator().manual_seed(0)))
    corners, counts = many[:, 0, 0, 0].unique(return_counts=True)
    assert len(corners) == 3 * 5 and int(counts.min()) > 30  # every place, about equally often


def test_half_are_mirrored():
    flip = Augment(flip=True)
    found = flip(IMAGES, torch.tensor([[0, 0, 0.4], [0, 0, 0.6]]))
    assert torch.equal(found[0], IMAGES[0].flip(2)) and torch.equal(found[1], IMAGES[1])
    assert torch.equal(flip(IMAGES), IMAGES)


def test_shapes():
    assert Augment().shape((3, 4, 6)) == (3, 4, 6) and Augment(crop=4).shape((3, 4, 6)) == (3, 4, 4)
    assert not Augment() and Augment(crop=1) and Augment(flip=True)
    with pytest.raises(ValueError, match="data.crop = 5 is larger than the pictures of 'cats', 4x6"):
        Augment(crop=5).shape((3, 4, 6), "'cats'")
