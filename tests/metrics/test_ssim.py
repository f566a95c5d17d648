"""SSIM against its formula written out on one window, and its invariances."""

from __future__ import annotations

import pytest
import torch

from fewstep.metrics.ssim import ssim


def test_one_window_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 1, 11, 11, generator=generator, dtype=torch.float64)
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    w = line[:, None] * line
    w = w / w.sum()
    ma, mb = (w * a[0, 0]).sum(), (w * b[0, 0]).sum()
    va, vb = (w * (a[0, 0] - ma) ** 2).sum(), (w * (b[0, 0] - mb) ** 2).sum()
    both = (w * (a[0, 0] - ma) * (b[0, 0] - mb)).sum()
    wanted = (2 * ma * mb + 1e-4) * (2 * both + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert ssim(a, b, (0.0, 1.0)).value == pytest.approx(float(wanted))


def test_it_is_1_for_the_original_and_falls_with_noise_and_blur():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(x.shape, generator=generator)
    assert ssim(x, x).value == pytest.approx(1.0)
    assert 1 > ssim(x + 0.1 * noise, x).value > ssim(x + 0.5 * noise, x).value
    small = torch.rand(2, 1, 4, 6, generator=generator)
    assert ssim(small, small).value == pytest.approx(1.0)


def test_bad_input():
    with pytest.raises(ValueError, match="pairs of pictures"):
        ssim(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="low < high"):
        ssim(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), (1.0, 1.0))
