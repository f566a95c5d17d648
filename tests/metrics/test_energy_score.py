"""The energy score against sums, against integrals, and as a proper score."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.metrics.energy_score import energy_score


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_double_sum():
    draws, truth = normal(3, 4, 2, seed=1), normal(3, 2, seed=2)
    by_hand = []
    for x, y in zip(draws, truth, strict=True):
        near = sum(float((one - y).norm()) for one in x) / 4
        apart = sum(float((x[i] - x[j]).norm()) for i in range(4) for j in range(4) if i != j) / 12
        by_hand.append(near - apart / 2)
    found = energy_score(draws, truth)
    assert found.value == pytest.approx(sum(by_hand) / 3) and found.draws == 4 and found.n == 3
    assert energy_score(truth + 1, truth).value == pytest.approx(math.sqrt(2))


def test_the_true_law_has_the_least_and_few_draws_have_no_bias():
    n = 4000
    truth = normal(n, 1, seed=3)
    exact = 2 / math.sqrt(math.pi) / 2  # E|x - x'| / 2 of two standard normals
    scores = {}
    for draws in (2, 8):
        found = energy_score(normal(n, draws, 1, seed=4), truth)
        assert abs(found.value - exact) < 4 * found.error
    for name, scale, shift in (("true", 1.0, 0.0), ("narrow", 0.4, 0.0), ("wide", 2.0, 0.0), ("moved", 1.0, 0.5)):
        scores[name] = energy_score(scale * normal(n, 8, 1, seed=5) + shift, truth).value
    assert min(scores, key=scores.__getitem__) == "true"


def test_what_does_not_belong_together_is_said():
    with pytest.raises(ValueError, match=r"draws are \(B, n, \*shape\)"):
        energy_score(normal(3, 4, 5), normal(2, 5))
