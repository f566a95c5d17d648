from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.core.methods import find
from fewstep.metrics.endpoint import endpoint_error
from fewstep.metrics.frechet import frechet, gaussian_frechet
from fewstep.metrics.psnr import psnr


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(dim, seed, rank=None):
    factor = normal(dim, rank or dim + 2, seed=seed)
    return factor @ factor.T


def test_registered():
    assert find("frechet") is frechet


def test_diagonal_gaussians_closed_form():
    a, b = torch.tensor([1.0, 4.0, 0.25]), torch.tensor([9.0, 1.0, 0.0])
    mean = torch.tensor([1.0, -2.0, 2.0])
    expected = 9.0 + ((a.sqrt() - b.sqrt()) ** 2).sum().item()
    assert gaussian_frechet(torch.zeros(3), a.diag(), mean, b.diag()) == pytest.approx(expected, rel=1e-14)


def test_agrees_with_the_matrix_square_root_of_the_product():
    from scipy.linalg import sqrtm

    a, b, mean = covariance(5, 1), covariance(5, 2), normal(5, seed=3)
    root = sqrtm((a @ b).numpy())
    expected = (mean @ mean + a.trace() + b.trace()).item() - 2 * np.trace(root).real
    assert gaussian_frechet(mean, a, torch.zeros(5), b) == pytest.approx(expected, rel=1e-10)


def test_rotation_does_not_matter():
    a, b, mean, other = covariance(6, 1), covariance(6, 2), normal(6, seed=3), normal(6, seed=4)
    q = torch.linalg.qr(normal(6, 6, seed=5))[0]
    turned = gaussian_frechet(q @ mean, q @ a @ q.T, q @ other, q @ b @ q.T)
    assert turned == pytest.approx(gaussian_frechet(mean, a, other, b), rel=1e-12)


def test_singular_covariances_are_exact():
    # On a line each, at an angle: tr sqrt(S_a^1/2 S_b S_a^1/2) = |u.v| s t, and no rounding of size 1e-8.
    u, v, s, t = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.6, 0.8, 0, 0]), 3.0, 2.0
    value = gaussian_frechet(torch.zeros(4), s**2 * torch.outer(u, u), torch.zeros(4), t**2 * torch.outer(v, v))
    assert value == pytest.approx(s**2 + t**2 - 2 * 0.6 * s * t, abs=1e-6)  # the inputs are float32
    low = covariance(7, 3, rank=2)
    assert gaussian_frechet(torch.zeros(7), low, torch.zeros(7), low) < 1e-12 * low.trace().item()
    # Perpendicular supports overlap in nothing.
    e = torch.eye(4, dtype=torch.float64)
    assert gaussian_frechet(e[0], 4 * torch.outer(e[1], e[1]), e[0], torch.outer(e[2], e[2])) == pytest.approx(
        5, rel=1e-14
    )


def test_equal_sets_are_at_zero_and_a_shift_is_its_square():
    x = normal(40, 1, 2, 3)
    shift = normal(1, 1, 2, 3, seed=1)
    assert frechet(x, x).value < 1e-12
    assert frechet(x + shift, x).value == pytest.approx(shift.square().sum().item(), rel=1e-10)


def test_scaling_moves_the_deviations():
    x = normal(50, 4)
    x = x - x.mean(0)
    expected = x.var(0).sum().item()  # (2 - 1)^2 tr S
    assert frechet(2 * x, x).value == pytest.approx(expected, rel=1e-12)


def test_floor_is_what_as_many_real_rows_score():
    real, samples = normal(200, 3), normal(60, 3, seed=1)
    result = frechet(samples, real, seed=2)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    expected = frechet(real[order[:60]], real[order[60:]]).value
    assert (result.n, result.n_real, result.floor_n) == (60, 200, 60)
    assert result.floor == pytest.approx(expected, rel=1e-12)
    assert 0.2 < result.value / result.floor < 5  # both are draws of the same kind
    assert frechet(samples, real, seed=2) == result
    assert frechet(samples, real, seed=3).floor != result.floor


@pytest.mark.parametrize("real_n, floor_n", [(100, 50), (101, 50), (5, 2), (3, 0)])
def test_floor_of_few_real_rows(real_n, floor_n):
    result = frechet(normal(80, 2), normal(real_n, 2, seed=1))
    assert result.floor_n == floor_n
    assert (result.floor is None) == (floor_n == 0)


def test_features_are_named_in_the_result():
    x = normal(20, 2, 3)

    def corners(x):
        return x[:, :, 0]

    assert frechet(x, x, corners).features == "corners"
    assert frechet(x + torch.tensor([0.0, 1, 1]), x, corners).value < 1e-12
    assert set(frechet(x, x).as_dict()) == {"value", "n", "n_real", "features", "floor", "floor_n"}


def test_digits_features_tell_noise_from_digits():
    from fewstep.data import digits

    images, _ = digits.load("validation")
    train, _ = digits.load("train")
    near, far = frechet(images, train, "digits"), frechet(torch.rand_like(images) * 2 - 1, train, "digits")
    assert near.value < 3 * near.floor
    assert far.value > 20 * near.value


def test_bad_input():
    x = normal(6, 3)
    with pytest.raises(ValueError, match="not finite, in 1 of 6"):
        frechet(torch.where(torch.arange(18).reshape(6, 3) == 4, math.nan, x), x)
    with pytest.raises(ValueError, match="at least 2"):
        frechet(x, x[:1])
    with pytest.raises(ValueError, match=r"\(3,\) each but real are \(2,\)"):
        frechet(x, x[:, :2])
    with pytest.raises(ValueError, match="'pixels'"):
        frechet(x, x, "pixel")
    with pytest.raises(ValueError, match=r"\(F, F\)"):
        gaussian_frechet(torch.zeros(3), torch.eye(3), torch.zeros(2), torch.eye(2))


def test_bytes_are_not_compared_with_floats():
    a = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    as_bytes = ((a + 1) * 127.5).to(torch.uint8)
    for one, other in ((a, as_bytes), (as_bytes, a)):
        with pytest.raises(ValueError, match="hold floats but .* torch.uint8: bring both to one range first"):
            frechet(one, other)
        with pytest.raises(ValueError, match="whole numbers up to .* bring both to one range first"):
            frechet(one.float(), other.float())
    assert frechet(as_bytes, as_bytes.flip(0)).value == pytest.approx(0, abs=1e-4)
    assert frechet(300 * a, a).value > 100  # samples that ran away are measured
    for metric in (psnr, endpoint_error):
        with pytest.raises(ValueError, match="bring both to one range first"):
            metric(a, as_bytes)
    assert frechet(a.numpy(), a.flip(0).numpy()).value == pytest.approx(0, abs=1e-6)
