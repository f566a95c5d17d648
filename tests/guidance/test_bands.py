"""The pyramid's bands sum to the picture at every size."""

from __future__ import annotations

import pytest
import torch

from fewstep.guidance.bands import bands, low_pass

F64 = torch.float64
SIZES = [(1, 1), (1, 7), (2, 3), (5, 4), (8, 8), (13, 32)]


def normal(*shape, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_bands_of_the_gaussian_pyramid_sum_to_the_identity(size, levels):
    for dtype, within in ((F64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 3e-2)):
        x = normal(2, 3, *size, dtype=dtype)
        found = bands(x, levels)
        assert len(found) == levels and all(band.shape == x.shape and band.dtype == dtype for band in found)
        assert float((sum(found) - x).abs().max()) < within
    assert torch.equal(bands(x, 1)[0], x)


def test_a_constant_is_in_the_coarsest_band_alone_and_finer_waves_in_finer_bands():
    *fine, coarse = bands(torch.full((1, 5, 6), 3.0, dtype=F64), 3)
    assert max(float(band.abs().max()) for band in fine) < 1e-14 and float((coarse - 3).abs().max()) < 1e-14
    place = torch.arange(128, dtype=F64)
    for period, band in ((3, 0), (12, 1), (24, 2), (128, 3)):
        wave = torch.cos(2 * torch.pi * place / period).expand(1, 128)
        energy = [float(part.square().sum()) for part in bands(wave, 4)]
        assert max(range(4), key=lambda k: energy[k]) == band, (period, energy)
    assert torch.equal(low_pass(wave, 0), wave) and torch.equal(low_pass(wave, 3), bands(wave, 4)[3])


def test_a_level_is_burts_and_adelsons():
    x = normal(1, 12)
    reduced = [sum(w * x[0, 2 * i + k - 2] for k, w in enumerate((1, 4, 6, 4, 1))) / 16 for i in range(1, 5)]
    # Between the ends: an even place takes (1, 6, 1) / 8 of the reduced row, an odd one (4, 4) / 8.
    found = low_pass(x, 1)[0]
    torch.testing.assert_close(found[4], (reduced[0] + 6 * reduced[1] + reduced[2]) / 8)
    torch.testing.assert_close(found[5], (reduced[1] + reduced[2]) / 2)


def test_what_has_no_bands_says_so():
    with pytest.raises(ValueError, match="levels must be a whole number of at least 1, got 0"):
        bands(torch.zeros(2, 3), 0)
    with pytest.raises(
        ValueError, match=r"bands are of floats \(..., H, W\) or \(B, L\), got a tensor of shape \(3,\)"
    ):
        bands(torch.zeros(3), 2)
    with pytest.raises(ValueError, match="bands are of floats"):
        low_pass(torch.zeros(2, 3, dtype=torch.long), 1)
