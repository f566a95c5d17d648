"""The Haar transform: known bands, an exact inverse for every size, a low band replaced."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.guidance.haar import haar, inverse_haar, low_band, with_low_band

F64 = torch.float64
SIZES = [(8, 8), (7, 5), (2, 3), (1, 1), (16, 9)]


def picture(size: tuple[int, int], draw: int = 0) -> torch.Tensor:
    return Noise(1).normal(draw, (2, 3, *size), dtype=F64)


def test_the_bands_of_four_numbers():
    low, (wide, tall, both) = haar(torch.tensor([[1.0, 2.0], [4.0, 9.0]], dtype=F64))
    assert [float(band) for band in (low, wide, tall, both)] == pytest.approx([8.0, -3.0, -5.0, 2.0])


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_is_exact_for_any_size(size):
    x = picture(size)
    low, details = haar(x)
    assert low.shape == (2, 3, (size[0] + 1) // 2, (size[1] + 1) // 2)
    torch.testing.assert_close(inverse_haar(low, details, size), x, rtol=0, atol=1e-14)
    if size == (8, 8):  # an orthogonal transform
        assert float(sum(band.square().sum() for band in (low, *details))) == pytest.approx(float(x.square().sum()))
        assert float(haar(torch.ones(1, 8, 8))[1][0].abs().max()) == 0


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_a_low_band_is_replaced_and_nothing_else(size, levels):
    x, other = picture(size), picture(size, 1)
    mixed = with_low_band(x, low_band(other, levels), levels)
    torch.testing.assert_close(low_band(mixed, levels), low_band(other, levels), rtol=0, atol=1e-13)
    torch.testing.assert_close(with_low_band(x, low_band(x, levels), levels), x, rtol=0, atol=1e-13)
    for _ in range(levels):
        (x, ours), (mixed, theirs) = haar(x), haar(mixed)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
