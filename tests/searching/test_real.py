from __future__ import annotations

import torch

import fewstep as fs
from fewstep.searching.problem import Problem
from fewstep.searching.real import accuracy, real_of


def test_data_given_or_known_or_the_reference():
    model = fs.load("digits")
    problem = Problem(torch.zeros(3, 1, 8, 8), torch.ones(3, 1, 8, 8), {"label": torch.tensor([0, 1, 2])}, 0, 0)
    known = real_of(model, problem, None)
    assert known.data and known.name == "digits, train split" and known.images.shape[1:] == (1, 8, 8)
    model.data = None
    assert not real_of(model, problem, None).data
    assert torch.equal(real_of(model, problem, None).images, problem.reference)


def test_accuracy_is_of_the_labels_asked_for():
    model = fs.load("digits")
    from fewstep.data.open import open_built_in

    images, labels = open_built_in("digits")[torch.arange(60)]
    right = Problem(images, images, {"label": labels}, 0, 0)
    wrong = Problem(images, images, {"label": (labels + 1) % 10}, 0, 0)
    assert accuracy(model, images, right) > 0.95 and accuracy(model, images, wrong) < 0.05
    model.data = "shapes"  # no metric reads these labels
    assert accuracy(model, images, right) is None
