"""The share of pictures that show what was asked."""

from __future__ import annotations

import pytest
import torch

from fewstep.data.shapes import captions, draw
from fewstep.metrics.caption_accuracy import caption_accuracy


def test_pictures_of_their_captions_and_of_others():
    rows = torch.arange(30)
    images, asked = draw(rows)[0], captions(rows)
    right = caption_accuracy(images, asked, batch=7)
    assert (right.value, right.n, right.error) == (1.0, 30, 0.0)
    assert right.count == right.colour == right.shape == right.size == right.position == 1.0
    half = caption_accuracy(torch.cat([images[:15], torch.full((15, 3, 32, 32), -0.8)]), asked)
    assert half.value == 0.5 and half.error == pytest.approx((0.25 / 30) ** 0.5) and half.count == 0.5


def test_faulty_arguments():
    with pytest.raises(ValueError, match="3 pictures need as many captions, got 2"):
        caption_accuracy(torch.zeros(3, 3, 32, 32), ["a red circle"] * 2)
    with pytest.raises(ValueError, match="nan|finite"):
        caption_accuracy(torch.full((2, 3, 32, 32), torch.nan), ["a red circle"] * 2)
