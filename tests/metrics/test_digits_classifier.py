from __future__ import annotations

from importlib import resources

import pytest
import torch

from fewstep.data import digits
from fewstep.metrics import digits_classifier as room
from fewstep.metrics.digits_classifier import digits_classifier


def test_shipped_weights_reach_the_accuracy_they_state():
    model = digits_classifier()
    for split in ("train", "validation"):
        images, labels = digits.load(split)
        accuracy = (model(images).argmax(1) == labels).double().mean().item()
        assert accuracy == pytest.approx(room.facts()[f"{split}_accuracy"], abs=1.5 / len(labels))
        assert accuracy >= 0.98


def test_shipped_file_is_small_and_frozen():
    assert len(resources.files("fewstep.metrics").joinpath(room.WEIGHTS).read_bytes()) < 300_000
    model = digits_classifier()
    assert model is digits_classifier()
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_gradient_reaches_the_images():
    x = torch.zeros(2, 1, 8, 8, requires_grad=True)
    digits_classifier()(x)[:, 3].sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_wrong_images():
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\)"):
        digits_classifier()(torch.zeros(2, 3, 8, 8))
