from __future__ import annotations

from importlib import resources

import pytest
import torch

from fewstep.data import digits
from fewstep.metrics import digits_classifier as room
from fewstep.metrics.digits_classifier import DigitsClassifier, digits_classifier, train_digits_classifier


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


def test_training_learns_and_repeats():
    before = torch.random.get_rng_state()
    model, facts = train_digits_classifier(seed=3, epochs=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert facts["validation_accuracy"] > 0.4
    again, _ = train_digits_classifier(seed=3, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_saved_weights_come_back(tmp_path):
    from safetensors.torch import load_file

    model = DigitsClassifier().eval()
    path = room.save_digits_classifier(model, {"validation_accuracy": 0.5}, tmp_path / "w.safetensors")
    other = DigitsClassifier().eval()
    other.load_state_dict(load_file(path))
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(x), other(x))
    assert room.facts(path) == {"validation_accuracy": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_shifts_keep_the_ink_that_stays_inside():
    image = torch.full((200, 1, 8, 8), -1.0)
    image[:, 0, 4, 2] = 1.0
    moved = room._augment(image, torch.Generator().manual_seed(0))
    peaks = moved.flatten(1).argmax(1)
    places = {(int(p) // 8 - 4, int(p) % 8 - 2) for p in peaks}
    assert places == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}


def test_wrong_images():
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\)"):
        digits_classifier()(torch.zeros(2, 3, 8, 8))
