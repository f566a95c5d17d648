from __future__ import annotations

import torch

from fewstep.metrics.digits_classifier import DigitsClassifier, facts
from fewstep.training import digits_classifier as room
from fewstep.training.digits_classifier import train_digits_classifier


def test_training_learns_and_repeats():
    before = torch.random.get_rng_state()
    model, measured = train_digits_classifier(seed=3, epochs=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert measured["validation_accuracy"] > 0.4
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
    assert facts(path) == {"validation_accuracy": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_shifts_keep_the_ink_that_stays_inside():
    image = torch.full((200, 1, 8, 8), -1.0)
    image[:, 0, 4, 2] = 1.0
    moved = room._augment(image, torch.Generator().manual_seed(0))
    peaks = moved.flatten(1).argmax(1)
    places = {(int(p) // 8 - 4, int(p) % 8 - 2) for p in peaks}
    assert places == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
