from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import find
from fewstep.data import digits
from fewstep.metrics.accuracy import class_accuracy


def test_registered():
    assert find("accuracy") is class_accuracy


def test_counts_by_hand():
    def classifier(x):
        return x[:, :3]

    x = torch.eye(3).repeat(2, 1)[:5]  # classes 0 1 2 0 1
    result = class_accuracy(x, torch.tensor([0, 1, 0, 0, 2]), classifier)
    assert result.value == pytest.approx(3 / 5) and result.n == 5
    assert result.error == pytest.approx((0.6 * 0.4 / 5) ** 0.5)
    assert class_accuracy(x, 1, classifier).value == pytest.approx(2 / 5)


def test_real_digits_and_labels_at_random():
    images, labels = digits.load("validation")
    assert class_accuracy(images, labels).value >= 0.98
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    assert class_accuracy(images, shuffled).value == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.zeros(3), "integers"),
        (torch.zeros(4, dtype=torch.long), r"\(3,\) integers, not \(4,\)"),
        (torch.tensor([0, 1, 10]), r"\[0, 10\), not in \[0, 10\]"),
        (-1, r"not in \[-1, -1\]"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        class_accuracy(torch.zeros(3, 1, 8, 8), labels)


def test_classifier_must_give_logits():
    with pytest.raises(ValueError, match=r"\(3, classes\)"):
        class_accuracy(torch.zeros(3, 2), 0, lambda x: x.sum(1))
