"""Undersampled Fourier transforms against NumPy's, and their masks and coils."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.operators.fourier import CENTRE, Fourier, sensitivities
from fewstep.operators.spectrum import Right

X = torch.randn(2, 2, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ALL = torch.ones(6, 9)


def test_it_is_numpys_transform_with_the_lowest_frequency_in_the_middle():
    y = Fourier(ALL)(X)
    wanted = np.fft.fftshift(np.fft.fft2(X[:, 0].numpy() + 1j * X[:, 1].numpy(), norm="ortho"), axes=(-2, -1))
    assert np.allclose(y[:, 0].numpy() + 1j * y[:, 1].numpy(), wanted)
    real = Fourier(ALL)(torch.ones(1, 1, 6, 9))
    assert float(real[0, 0, 3, 4]) == pytest.approx(54**0.5) and float(real.abs().sum()) == pytest.approx(54**0.5)


@pytest.mark.parametrize("name", ["cartesian", "random", "radial"])
def test_masks_see_the_share_that_is_asked_for(name: str):
    size = (48, 60)
    mask = Fourier(name, acceleration=4, seed=2).fit((1, *size)).mask
    share = float(mask.mean())
    assert 0.25 - 1e-9 < share < 0.25 + (0.03 if name == "radial" else 1e-9) and mask[24, 30] == 1  # a spoke more
    if name == "cartesian":
        assert torch.equal(mask, mask[:1].expand(size))
        middle = round(CENTRE * 60)
        first = 30 - (middle - 1) // 2
        assert bool(mask[0, first : first + middle].all())
        assert not torch.equal(mask, Fourier(name, seed=3).fit((1, *size)).mask)
    if name == "radial":
        assert bool(mask[24].all())  # the spoke at no angle


def test_coils():
    maps = sensitivities(5, (6, 9))
    assert torch.allclose(maps.abs().square().sum(0), ALL.double())
    one = Fourier(ALL, coils=5)
    assert torch.allclose(one(X).square().sum((1, 2, 3)), X.square().sum((1, 2, 3)))
    y = Fourier(ALL, coils=maps)(X)
    assert torch.equal(y, one(X)) and y.shape == (2, 10, 6, 9)
    assert torch.equal(y, Fourier(ALL, coils=torch.view_as_real(maps))(X))
    image = torch.complex(X[:, 0], X[:, 1]) * maps[3]
    whole = Fourier(ALL)(torch.stack((image.real, image.imag), 1))
    assert torch.allclose(y[:, 6:8], whole)


def test_one_coil_has_a_spectrum_of_any_size():
    for channels in (1, 2):
        spectrum = Fourier("random").fit((channels, 70, 70)).spectrum()
        assert isinstance(spectrum, Right) and len(spectrum.values) == channels * 4900
    assert Fourier("random", coils=2).fit((1, 70, 70)).spectrum() is None


def test_bad_input():
    with pytest.raises(ValueError, match="did you mean 'cartesian'"):
        Fourier("cartesien")
    with pytest.raises(ValueError, match="the acceleration of a mask by name is at least 1, got 0.5"):
        Fourier("random", acceleration=0.5)
    with pytest.raises(ValueError, match=r"takes real samples \(1, \*size\) or complex ones \(2, \*size\), not \(3, "):
        Fourier()(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"a mask of shape \(6, 9\) does not fit samples of \(1, 4, 4\)"):
        Fourier(ALL)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="between 0 and 1 and sees something, got 0 to 0"):
        Fourier(0 * ALL)
    with pytest.raises(ValueError, match="the number of coils is at least 1, got 0"):
        Fourier(coils=0)
    with pytest.raises(ValueError, match=r"coils of shape \(5, 6, 9\) do not fit samples of \(1, 4, 4\)"):
        Fourier(coils=sensitivities(5, (6, 9)))(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="a radial mask is for two axes"):
        Fourier("radial")(torch.zeros(1, 8))
