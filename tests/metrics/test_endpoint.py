from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.methods import find
from fewstep.metrics.endpoint import endpoint_error, fresh


def test_registered():
    assert find("endpoint") is endpoint_error


def test_by_hand():
    reference = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]], [[0.0, 4.0]]])
    x = reference + torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]], [[3.0, 4.0]]])
    result = endpoint_error(x, reference)
    assert result.value == pytest.approx((1 + 0 + 5) / (5 + 1 + 4))  # a ratio of means, not a mean of ratios
    assert result.median == pytest.approx(1 / 5)  # of 1/5, 0 and 5/4
    assert result.low <= result.value <= result.high
    told = {"value": result.value, "n": 3, "median": result.median, "low": result.low, "high": result.high}
    assert result.as_dict() == told


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


@pytest.mark.parametrize("rate, size", [(0.0, 0.0), (0.02, 1.3), (0.1, 0.8)], ids=["none jump", "1 in 50", "1 in 10"])
def test_the_bounds_hold_on_fresh_noises(rate, size):
    """Log-normal errors, and some that ended elsewhere: the mean of as many fresh ones is inside 95 times in 100."""
    generator = torch.Generator().manual_seed(3)

    def drawn() -> torch.Tensor:
        bulk = 0.02 * torch.exp(0.8 * torch.randn(128, generator=generator, dtype=torch.float64))
        jumped = torch.rand(128, generator=generator) < rate
        return torch.where(jumped, torch.tensor(size, dtype=torch.float64), bulk)

    inside, width = 0, 0.0
    for _ in range(200):
        low, high = fresh(drawn(), apart=1.4)
        inside += low <= float(drawn().mean()) <= high
        width += (high - low) / 200
    assert inside >= 184
    assert width < 0.05 + 3 * size * rate


def test_noises_that_hold_no_jump_do_not_rule_one_out():
    low, high = fresh(torch.full((130,), 0.02, dtype=torch.float64), apart=1.4)
    assert low <= 0.02 and 0.03 < high < 0.06
