from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.methods import find
from fewstep.metrics.endpoint import endpoint_error


def test_registered():
    assert find("endpoint") is endpoint_error


def test_by_hand():
    reference = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]], [[0.0, 4.0]]])
    x = reference + torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]], [[3.0, 4.0]]])
    result = endpoint_error(x, reference)
    assert result.value == pytest.approx((1 + 0 + 5) / (5 + 1 + 4))  # a ratio of means, not a mean of ratios
    assert result.median == pytest.approx(1 / 5)  # of 1/5, 0 and 5/4
    assert result.as_dict() == {"value": result.value, "n": 3, "median": result.median}


def test_even_counts_take_the_middle():
    reference = torch.ones(2, 1)
    assert endpoint_error(reference + torch.tensor([[1.0], [3.0]]), reference).median == pytest.approx(2.0)


def test_small_errors_survive_large_values():
    reference = torch.full((3, 2), 1e4, dtype=torch.float64)
    assert endpoint_error(reference * (1 + 1e-12), reference).value == pytest.approx(1e-12, rel=1e-3)
    assert endpoint_error(reference, reference).value == 0.0


def test_bad_input():
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match="3 samples but the reference 4"):
        endpoint_error(x, torch.ones(4, 2))
    with pytest.raises(ValueError, match="each but"):
        endpoint_error(x, torch.ones(3, 1))
    with pytest.raises(ValueError, match="zero throughout"):
        endpoint_error(x, torch.tensor([[1.0, 0], [0, 0], [0, 1]]))
    with pytest.raises(ValueError, match="not finite"):
        endpoint_error(x * math.inf, x)
