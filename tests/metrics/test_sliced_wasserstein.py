from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.methods import find
from fewstep.metrics.sliced_wasserstein import _directions, _squared_w2, sliced_wasserstein


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_registered():
    assert find("sliced-wasserstein") is sliced_wasserstein


def test_one_dimension_sorts():
    a, b = torch.tensor([[3.0], [0.0], [1.0]]), torch.tensor([[1.0], [2.0], [6.0]])
    assert sliced_wasserstein(a, b).value == pytest.approx(math.sqrt((1 + 1 + 9) / 3))


def test_unequal_sizes_are_exact():
    # Quantiles: 0 then 6, half each, against 0, 3, 9 a third each. On sixths: 0-0 0-0 0-3 6-3 6-9 6-9.
    a, b = torch.tensor([[6.0], [0.0]]), torch.tensor([[3.0], [9.0], [0.0]])
    assert sliced_wasserstein(a, b).value == pytest.approx(math.sqrt((9 + 9 + 9 + 9) / 6))


def test_repeating_every_row_changes_nothing():
    a, b = normal(7, 2, 3), normal(5, 2, 3, seed=1)
    expected = sliced_wasserstein(a, b).value
    assert sliced_wasserstein(a.repeat(3, 1, 1), b.repeat(2, 1, 1)).value == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(a.repeat(4, 1, 1), a).value < 1e-12


def test_agrees_with_scipy_quadrature():
    from scipy.optimize import linear_sum_assignment

    a, b = normal(6, 1), normal(4, 1, seed=1)
    cost = (a.repeat(2, 1) - b.repeat(3, 1).T).square()  # 12 against 12: an assignment
    rows, columns = linear_sum_assignment(cost.numpy())
    assert _squared_w2(a, b).item() == pytest.approx(cost[rows, columns].mean().item(), rel=1e-12)


def test_shift_is_its_length_over_the_root_of_the_dimension():
    x, shift = normal(30, 1, 2, 5), normal(1, 1, 2, 5, seed=1)
    expected = shift.norm().item() / math.sqrt(10)
    assert sliced_wasserstein(x + shift, x, projections=30).value == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(x + shift, x, projections=257).value == pytest.approx(expected, rel=0.05)


def test_gaussians_of_different_width():
    # Along every direction (2 - 1)^2; the sample at n = 4000 is within a few percent.
    value = sliced_wasserstein(2 * normal(4000, 3), normal(3000, 3, seed=1)).value
    assert value == pytest.approx(1.0, abs=0.06)


def test_directions_are_fixed_frames():
    directions = _directions(5, 12, 0)
    assert directions.shape == (5, 12)
    torch.testing.assert_close(directions[:, :5].T @ directions[:, :5], torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(12, dtype=torch.float64))
    assert torch.equal(directions, _directions(5, 12, 0))
    assert not torch.equal(directions, _directions(5, 12, 1))


def test_result_states_what_was_measured():
    result = sliced_wasserstein(normal(7, 2), normal(5, 2, seed=1), projections=9)
    assert result.as_dict() == {
        "value": result.value, "n": 7, "n_real": 5, "features": "pixels", "projections": 9,
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least 1"):
        sliced_wasserstein(normal(7, 2), normal(5, 2), projections=0)
