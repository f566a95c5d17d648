"""Data that are drawn when they are asked for, through `open_data`."""

from __future__ import annotations

import pytest
import torch

from fewstep.data import shapes
from fewstep.data.open import open_data


def test_shapes_open_by_name():
    data = open_data("shapes")
    assert len(data) == shapes.N_TRAIN and data.spec.shape == (3, 32, 32) and data.labels is None
    rows = torch.tensor([5, 199_999, 0])
    images, condition = data.batch(rows)
    expected, tokens = shapes.draw(rows, "train")
    assert torch.equal(images, expected) and torch.equal(condition["text"], tokens)
    assert torch.equal(data[3:5][0], shapes.draw(torch.tensor([3, 4]), "train")[0])


def test_the_words_are_those_of_the_captions():
    data = open_data("shapes", split="validation")
    rows = torch.arange(50)
    _, condition = data.batch(rows)
    captions = [data.spec.text.words(row) for row in condition["text"].tolist()]
    assert captions == shapes.captions(rows, "validation")
    assert torch.equal(data.spec.text.check("text", captions, 50, torch.device("cpu")), condition["text"])


def test_standard_deviation_and_images_are_of_the_first_rows():
    data = open_data("shapes", split="validation")
    images = data.images
    assert images.shape == (4096, 3, 32, 32) and data.std() == pytest.approx(float(images.std()), rel=1e-4)


def test_faulty_arguments():
    with pytest.raises(ValueError, match="use the split 'train' or 'validation'"):
        open_data("shapes", split="all")
    with pytest.raises(ValueError, match="unknown split 'tst'"):
        open_data("shapes", split="tst")
    with pytest.raises(ValueError, match="shapes comes as 32x32, not as 16"):
        open_data("shapes", size=16)
