"""What is not linear: magnitudes, clipping, gamma curves and functions."""

from __future__ import annotations

import pytest
import torch

from fewstep.operators.fourier import Fourier
from fewstep.operators.matrix import Matrix
from fewstep.operators.nonlinear import Clip, Gamma, Magnitude, Nonlinear

X = torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_magnitudes_lose_signs_and_places():
    y = Magnitude(2)(X)
    assert (
        y.shape == (2, 1, 8, 10)
        and torch.allclose(Magnitude(2)(-X), y)
        and torch.allclose(y, Magnitude(2)(X.flip(2, 3)))
    )
    assert torch.allclose(y.square().sum((1, 2, 3)), X.square().sum((1, 2, 3)))
    whole = Magnitude(Fourier(torch.ones(4, 5)))(X)
    assert torch.allclose(whole, torch.fft.fftshift(torch.fft.fft2(X, norm="ortho").abs(), (-2, -1)))
    matrix = torch.randn(3, 20, dtype=torch.float64)
    assert torch.allclose(Magnitude(Matrix(matrix))(X), (X.flatten(1) @ matrix.T).abs())


def test_clipping_has_no_slope_outside_and_a_gamma_curve_its_ends():
    x = torch.tensor([[-2.0, 0.1, 2.0]], dtype=torch.float64)
    assert Clip(-0.5, 0.5)(x).tolist() == [[-0.5, 0.1, 0.5]]
    assert Clip(-0.5, 0.5).jacobian(x)[0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    ends = torch.tensor([[-1.0, 1.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(Gamma(2.2)(ends)[0], torch.tensor([-1.0, 1.0, 2 * 0.5**2.2 - 1]).double())
    slope = Gamma(0.5).jacobian(ends)[0]
    assert bool(torch.isfinite(slope).all()) and float(slope[2, 2]) == pytest.approx(0.5**0.5)


def test_bad_input():
    with pytest.raises(ValueError, match="magnitudes are those of a linear operator"):
        Magnitude(Clip())
    with pytest.raises(ValueError, match="a linear operator or a whole factor of oversampling, got 0"):
        Magnitude(0)
    with pytest.raises(ValueError, match="a range runs from a lower to a higher number, got 1 to 1"):
        Clip(1, 1)
    with pytest.raises(ValueError, match="the power of a gamma curve is positive, got 0"):
        Gamma(0)
    assert str(Nonlinear(torch.tanh)) == "nonlinear(tanh)"
