"""Metropolis' rule makes the law exact for any size of the step."""

from __future__ import annotations

import torch

from fewstep.core.noise import Noise
from fewstep.restoration.langevin import metropolis


def test_a_law_with_two_modes_stays_as_it_is():
    """`log p = -(x^2 - 1)^2`, from its own quantiles, in steps so large that without the rule they would not hold."""
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    weights = torch.exp(-((grid**2 - 1) ** 2))
    share = weights.cumsum(0) / weights.sum()
    ranks = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    start = grid[torch.searchsorted(share, ranks)][:, None]
    x = metropolis(lambda x: -((x[:, 0] ** 2 - 1) ** 2), start, 0.3, 30, Noise(3), 5)
    for power in (1, 2, 4):
        wanted, error = float((weights * grid**power).sum() / weights.sum()), float(x.pow(power).std()) / 4000**0.5
        assert abs(float(x.pow(power).mean()) - wanted) < 4 * error, power
    assert float((x == start).double().mean()) < 0.02  # it has moved
    alone = metropolis(lambda x: -((x[:, 0] ** 2 - 1) ** 2), start[:2], 0.3, 30, Noise(3), 5)
    assert torch.equal(alone, x[:2])
