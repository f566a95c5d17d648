"""Kernels by name: their sides, sums, widths and symmetry."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.operators.kernels import KERNELS, kernel_of


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_they_are_odd_symmetric_and_sum_to_one(name: str, axes: int):
    kernel = kernel_of(name, axes)
    assert all(side % 2 for side in kernel.shape) and float(kernel.sum()) == pytest.approx(1)
    assert kernel.ndim == (1 if name in ("gaussian", "box") else axes)
    assert torch.allclose(kernel, kernel.flip(*range(kernel.ndim)))


def test_widths():
    steps = torch.arange(-8, 9, dtype=torch.float64)
    assert float((kernel_of("gaussian", 1, width=2.0) * steps**2).sum()) == pytest.approx(4, rel=2e-3)
    assert kernel_of("box", 1, width=1).tolist() == [1.0]
    assert kernel_of("box", 1, width=2).tolist() == [0.25, 0.5, 0.25]
    disk = kernel_of("disk", 2, width=11)
    assert disk.shape == (11, 11) and float(disk.max()) == pytest.approx(1 / (math.pi * 5.5**2), rel=5e-3)
    ball = kernel_of("disk", 3, width=5)
    assert float(ball.max()) == pytest.approx(1 / (4 / 3 * math.pi * 2.5**3), rel=2e-2)
    assert kernel_of("motion", 2, length=3, angle=90).tolist() == [[pytest.approx(1 / 3)]] * 3
