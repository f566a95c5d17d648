"""Claims of fewstep/metrics/frechet.py."""

from __future__ import annotations

import math

import torch

from claims.common import F64, Claim, Outcome, compared, frechet, tolerance
from fewstep.metrics.frechet import gaussian_frechet

USUAL = "the square root of the product, as usual"


def _pair(seed: int, smallest: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Two Gaussians in 32 dimensions with the same axes, so that their distance is a plain sum."""
    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=F64))
    powers = torch.linspace(0, 1, 32, dtype=F64)
    a, b = smallest**powers, smallest ** powers.flip(0)
    mean = 0.1 * torch.randn(32, generator=generator, dtype=F64)
    wanted = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    zero = torch.zeros(32, dtype=F64)
    return zero, axes @ torch.diag(a) @ axes.T, mean, axes @ torch.diag(b) @ axes.T, wanted


def _closed_form(seed: int) -> Outcome:
    *pair, wanted = _pair(seed, 1e-3)
    about = "32 dimensions, variances 1 to 1e-3, common axes"
    return tolerance(abs(gaussian_frechet(*pair) / wanted - 1), 1e-9, about, "relative error")


def _nearly_singular(seed: int) -> Outcome:
    from scipy.linalg import sqrtm

    mean_a, cov_a, mean_b, cov_b, wanted = _pair(seed, 1e-12)
    root = torch.from_numpy(sqrtm((cov_a @ cov_b).numpy()).real.copy())
    usual = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root.trace())
    errors = [abs(found / wanted - 1) for found in (gaussian_frechet(mean_a, cov_a, mean_b, cov_b), usual)]
    return compared(errors, USUAL, "32 dimensions, variances 1 to 1e-12, common axes", unit="relative error")


def _singular(seed: int) -> Outcome:
    """Half of the variances are 0, as in a covariance of fewer rows than dimensions."""
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=F64))
    a, b = torch.zeros(2, 32, dtype=F64)
    a[:16], b[8:24] = torch.rand(2, 16, generator=generator, dtype=F64) + 0.5
    cov_a, cov_b = (axes @ torch.diag(value) @ axes.T for value in (a, b))
    wanted, zero = float((a.sqrt() - b.sqrt()).square().sum()), torch.zeros(32, dtype=F64)
    usual = float(a.sum() + b.sum()) - 2 * float(sqrtm((cov_a @ cov_b).numpy()).real.trace())
    ours, finite = abs(gaussian_frechet(zero, cov_a, zero, cov_b) / wanted - 1), math.isfinite(usual)
    against = USUAL + ("" if finite else ", which is not finite here")
    about = "32 dimensions, rank 16 each, 8 shared, common axes"
    return Outcome(ours, abs(usual / wanted - 1) if finite else 1.0, against, about, unit="relative error")


def _floor(seed: int) -> Outcome:
    """Samples that are real data: the floor must say what they score, where 0 says they should score nothing."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.2, 1, 24, dtype=F64)
    real, samples = (scale * torch.randn(n, 24, generator=generator, dtype=F64) for n in (1000, 500))
    result = frechet(samples, real)
    assert result.floor is not None
    about = f"500 samples and 1000 real rows of one Gaussian in 24 dimensions; the samples score {result.value:.3g}"
    figures = abs(result.value - result.floor), abs(result.value - 0.0)
    return compared(figures, "0 as the floor", about, unit="distance from the floor")


CLAIMS = (
    Claim("frechet", "is the closed form on Gaussians", _closed_form),
    Claim("frechet", "keeps its digits where covariances are nearly singular", _nearly_singular),
    Claim("frechet", "is exact where covariances are singular", _singular),
    Claim("frechet", "its floor says what real data score", _floor),
)
