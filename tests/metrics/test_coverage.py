"""Ranks of the truth among draws: uniform for the true law, at the ends for a narrow one."""

from __future__ import annotations

import pytest
import torch

from fewstep.metrics.coverage import coverage


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_true_law_is_covered_as_it_should_be():
    found = coverage(normal(5000, 19, 1, seed=1), normal(5000, 1, seed=2))
    assert found.p > 1e-3 and found.degrees == 19 and int(found.ranks.sum()) == 5000
    assert found.inside == pytest.approx(0.9, abs=0.015)


def test_a_narrow_and_a_wide_law_are_found():
    truth = normal(2000, 1, seed=2)
    narrow, wide = coverage(0.5 * normal(2000, 19, 1), truth), coverage(2 * normal(2000, 19, 1), truth)
    assert narrow.p < 1e-6 and narrow.inside < 0.8 and narrow.ranks[0] > 2 * narrow.ranks[10]
    assert wide.p < 1e-6 and wide.inside > 0.95


def test_ties_are_broken_by_chance():
    found = coverage(torch.zeros(4000, 3, 1), torch.zeros(4000, 1))
    assert found.p > 1e-3


def test_bad_input():
    with pytest.raises(ValueError, match="interval must be between 0 and 1"):
        coverage(normal(2, 3, 1), normal(2, 1), interval=1.0)
    with pytest.raises(ValueError, match="draws are"):
        coverage(normal(2, 1), normal(2, 1))
