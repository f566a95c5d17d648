"""The tasks that restoration is measured on: what degrades them, and the figure."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from claims.restored import ARMS, SOLVERS, TASKS, blurred, plan_of, psnr  # noqa: E402


def test_the_blur_is_a_gaussian_of_its_width():
    flat = torch.full((2, 1, 9, 7), 0.3)
    torch.testing.assert_close(blurred(flat, 1.0), flat)
    point = torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 1
    spread = blurred(point, 1.5)[0, 0]
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    where = torch.arange(31.0) - 15
    assert float((spread.sum(0) * where**2).sum()) == pytest.approx(1.5**2, rel=0.03)  # cut at three deviations
    torch.testing.assert_close(spread, spread.T)


def test_noise_of_a_task_has_its_deviation_and_is_new_with_every_call():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(500, 1, 8, 8)
    for task in TASKS:
        first, second = task.degrade(x, generator), task.degrade(x, generator)
        assert float(first.std()) == pytest.approx(task.noise, rel=0.02) and not torch.equal(first, second)


def test_psnr_is_that_of_the_definition():
    truth = torch.zeros(2, 1, 4, 4)
    off = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.02)])
    assert psnr(off, truth) == pytest.approx((20 * math.log10(2 / 0.2) + 20 * math.log10(2 / 0.02)) / 2, abs=1e-4)


@pytest.mark.parametrize("arm", list(ARMS))
def test_plans_keep_to_their_evaluations(arm):
    nfe = {"bridge-hybrid": 4}  # three a step, and one in the last
    for solver in SOLVERS[arm]:
        made = plan_of(arm, solver, 5)
        assert made.nfe == nfe.get(solver, 5) and made.times[-1] == ARMS[arm].t_zero
