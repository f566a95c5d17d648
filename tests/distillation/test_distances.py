"""Distances against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import F64, perceptron

from fewstep.distillation.distances import Features, distance, l1, pseudo_huber, squared
from fewstep.processes.ve import EDM

A = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]], dtype=F64)
B = torch.tensor([[1.0, 5.0, -2.0], [0.0, 0.0, 0.0]], dtype=F64)  # 5 apart, and not at all


def test_by_hand():
    assert squared(A, B).tolist() == pytest.approx([25 / 3, 0.0])
    assert l1(A, B).tolist() == pytest.approx([7 / 3, 0.0])
    assert pseudo_huber(12.0)(A, B).tolist() == pytest.approx([1.0, 0.0])  # 13 - 12
    c = 0.00054 * math.sqrt(3)
    assert pseudo_huber()(A, B)[0].item() == pytest.approx(math.sqrt(25 + c * c) - c, rel=1e-12)


def test_pseudo_huber_is_smooth_at_zero_and_exact_where_its_formula_cancels():
    a = torch.full((1, 3), 1e-9, dtype=F64, requires_grad=True)
    found = pseudo_huber(1.0)(a, torch.zeros(1, 3, dtype=F64))
    assert found.item() == pytest.approx(1.5e-18, rel=1e-6)  # half the square
    (slope,) = torch.autograd.grad(found.sum(), a)
    torch.testing.assert_close(slope, a.detach(), rtol=1e-6, atol=0)


def test_by_name():
    assert distance("l1") is l1 and distance("squared") is squared
    assert distance("pseudo-huber", 12.0)(A, B)[0].item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="unknown distance 'pseudo-hubert'.*'pseudo-huber'"):
        distance("pseudo-hubert")
    with pytest.raises(ValueError, match="c of the pseudo-Huber distance must be positive, got 0"):
        distance("pseudo-huber", 0.0)


def test_features_of_a_block():
    model = perceptron(EDM())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    features = Features(model)
    a, b = torch.randn(2, 4, 2).requires_grad_(True)
    a, b = a.detach().requires_grad_(True), b.detach()
    found = features(a, b, {})
    assert found.shape == (4,) and float(features(b, b, {}).max()) == 0.0
    (slope,) = torch.autograd.grad(found.sum(), a)
    assert bool(slope.isfinite().all()) and float(slope.norm()) > 0
    seen = [features.of(x, {})[0] for x in (a, b)]
    torch.testing.assert_close(found, (seen[0] - seen[1]).square().flatten(1).mean(1))
