"""Grids, tables and laws of levels under several processes, with Karras's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import F64, PROCESSES

from fewstep.core.student import default_start
from fewstep.distillation.levels import at_ratio, at_shares, grid, log_normal, ratio, ratio_of, table
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE


def test_edm_grid_is_karras():
    """Five levels from 80 to 0.002 by hand: (80^(1/7) + i/4 (0.002^(1/7) - 80^(1/7)))^7."""
    found = grid(EDM(), 5, 80.0).tolist()
    assert found == pytest.approx([80.0, 17.5278, 2.5152, 0.16975, 0.002, 0.0], rel=1e-4)


@pytest.mark.parametrize("process", [*PROCESSES, VE()], ids=lambda p: p.name)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_grids_from_any_start(process, share):
    start = process.t_min + share * (process.t_max - process.t_min)
    times = grid(process, 7, start)
    assert times.shape == (8,) and times.dtype == F64
    assert float(times[0]) == start and float(times[-1]) == process.t_zero
    assert float(times[-2]) == pytest.approx(process.t_min, rel=1e-6, abs=1e-12)
    assert bool((times.diff() < 0).all())
    levels = ratio(process, times[:-1])
    powers = levels ** (1 / 7)
    inner = powers[1:] if float(levels[0]) >= 80 else powers  # pure noise stands at 80 among the others
    torch.testing.assert_close(inner.diff(), inner.diff().mean().expand(len(inner) - 1), rtol=1e-6, atol=1e-8)


def test_a_grid_of_one_and_what_it_refuses():
    assert grid(EDM(), 1, 5.0).tolist() == [5.0, 0.0]
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        grid(EDM(), 0, 5.0)
    for start in (0.002, 81.0):
        with pytest.raises(ValueError, match="above 0.002 and at most at 80"):
            grid(EDM(), 4, start)


def test_shares_keep_their_shape_and_reach_both_ends():
    shares = torch.tensor([[0.0, 0.5], [1.0, 0.25]])
    found = at_shares(Flow(), 1.0, shares)
    assert found.shape == (2, 2) and float(found[0, 0]) == 1.0
    assert float(found[1, 0]) == pytest.approx(1e-3)
    assert ratio_of(Flow(), 1.0) == 80.0


@pytest.mark.parametrize("process", [*PROCESSES, VE()], ids=lambda p: p.name)
def test_ratios_and_back(process):
    start = default_start(process, 0.5)
    levels = torch.tensor([0.0, 0.05, 1.0, 1e9], dtype=F64)
    times = at_ratio(process, levels, start)
    assert float(times[0]) == process.t_zero and float(times[-1]) == start
    torch.testing.assert_close(ratio(process, times[:3]), levels[:3])


def test_a_table_is_the_teachers_own():
    process = Discrete.linear(steps=10)
    assert table(process, 50, process.t_max).tolist() == [9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1]
    assert table(process, 50, 4.5).tolist() == [4.5, 4, 3, 2, 1, 0, -1]
    assert torch.equal(table(EDM(), 5, 3.0), grid(EDM(), 5, 3.0))
    with pytest.raises(ValueError, match="at most at 9"):
        table(process, 50, 12.0)


def test_log_normal_levels_have_their_moments_and_ends():
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=F64)
    logs = ratio(EDM(), log_normal(EDM(), normal, -1.0, 0.5, 80.0)).log()
    assert float(logs.mean()) == pytest.approx(-1.0, abs=0.02) and float(logs.std()) == pytest.approx(0.5, abs=0.02)
    cut = log_normal(Flow(), torch.tensor([-99.0, 0.0, 99.0]), 0.0, 1.0, 0.9)
    assert cut.tolist() == pytest.approx([1e-3, 0.5, 0.9])
    assert float(cut[-1]) == 0.9 and math.isclose(float(cut[0]), 1e-3)
