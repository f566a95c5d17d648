"""Claims of the metrics that compare samples with a reference or with data."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from claims.claim import Claim, Outcome, compared, tolerance
from claims.common import F64, endpoint_error, frechet, plan, sliced_wasserstein
from claims.parts import EDM, VP, Flow, GaussianMixture, Noise
from claims.problems import mixture, problem
from claims.training.transport import BEND, noises
from fewstep.metrics.curvature import curvature
from fewstep.metrics.frechet import gaussian_frechet
from fewstep.metrics.precision_recall import precision_recall
from fewstep.metrics.psnr import psnr

USUAL = "the square root of the product, as usual"
MODES, ROWS = 8, 200
DIM, DIRECTIONS = 16, 64


def _gaussian(seed: int) -> Outcome:
    """Paths to one Gaussian of deviation s are `z sqrt((1 - t)^2 s^2 + t^2)`, their chords `z (s + (1 - s) t)`."""
    s, process = 0.3, Flow()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2, dtype=F64), s**2, process)
    noise, made = noises(seed, (2,), 64).double(), plan(process, "vab-3", 200, "uniform")
    found = curvature(made.run(model, noise, trajectory=True, dtype=F64).trajectory, made.times).value
    t = torch.linspace(1, 0, 20001, dtype=F64)
    away = (((1 - t) ** 2 * s**2 + t**2).sqrt() - s - (1 - s) * t) ** 2
    wanted = float(-torch.trapezoid(away, t) * noise.square().sum(1).mean())
    return tolerance(abs(found / wanted - 1), 1e-3, "one Gaussian, 200 evaluations", "error relative to closed form")


def _straight(seed: int) -> Outcome:
    noise = noises(seed, (2,), 64)
    ends, times = noise.flip(0) * 0.3, [1.0, 0.7, 0.2, 0.0]
    straight = curvature([torch.lerp(ends, noise, t) for t in times], times).relative
    made = plan(Flow(), "ddim", 50, "uniform")
    bent = curvature(made.run(mixture(Flow()), noise, trajectory=True).trajectory, made.times).relative
    about = "straight paths between random points, and 50 evaluations on the 8-component mixture"
    return Outcome(straight, 1e-9 * bent, "a billionth of the mixture's paths'", about, unit=BEND)


def _scaled(seed: int) -> Outcome:
    """One Gaussian about 0 of deviation s: ddim multiplies the state by (s^2 + sigma_a sigma_b) / (s^2 + sigma_a^2)."""
    s, process = 0.5, EDM()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 3, dtype=F64), s**2, process)
    noise, made = Noise(seed).normal(0, (64, 3), "cpu", F64), plan(process, "ddim", 10, "karras")
    factor = process.t_max
    for a, b in pairwise(made.times):
        factor *= (s**2 + a * b) / (s**2 + a * a)
    solution = noise * process.t_max * s / (s**2 + process.t_max**2) ** 0.5
    wanted = abs(factor / (process.t_max * s / (s**2 + process.t_max**2) ** 0.5) - 1)
    found = endpoint_error(made(model, noise, dtype=F64), solution).value
    about = f"ddim, 10 steps, one Gaussian under edm, whose error is {wanted:.4g} in closed form"
    return tolerance(abs(found / wanted - 1), 1e-9, about, "relative error")


def _steady(seed: int) -> Outcome:
    """How much the figure depends on which 32 noises were drawn."""
    on = problem(VP(), seed)
    samples, real = on.run(plan(VP(), "ddim", timesteps="uniform", nfe=20)), mixture(VP()).sample(2000, seed)
    parts = list(zip(samples.split(32), on.reference.split(32), strict=True))
    ours = torch.tensor([endpoint_error(x, reference).value for x, reference in parts])
    theirs = torch.tensor([frechet(x, real).value for x, _ in parts])
    figures = [float(values.std() / values.mean()) for values in (ours, theirs)]
    about = "ddim, 20 uniform steps, 8-component mixture, vp, 8 batches of 32 noises"
    return compared(figures, "the Frechet distance", about, unit="standard deviation over mean")


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


def _ring(modes: int, seed: int) -> torch.Tensor:
    """ROWS points round each of the first modes on a circle, well apart."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.arange(modes, dtype=F64).repeat_interleave(ROWS) / MODES
    centres = torch.stack((angle.cos(), angle.sin()), 1)
    return 3 * centres + 0.1 * torch.randn(len(angle), 2, generator=generator, dtype=F64)


def _lost_modes(seed: int) -> Outcome:
    full, lost = (precision_recall(_ring(modes, seed), _ring(MODES, seed + 1)) for modes in (MODES, 6))
    about = f"2 of 8 modes lost: recall {full.recall:.3f} to {lost.recall:.3f}, precision {full.precision:.3f} to"
    about += f" {lost.precision:.3f}, {ROWS} points a mode"
    return tolerance(abs(lost.recall / full.recall - 0.75), 0.05, about, "|share of recall kept - 3/4|")


def _strays(seed: int) -> Outcome:
    real, samples = _ring(MODES, seed + 1), _ring(MODES, seed)
    good = precision_recall(samples, real)
    samples[::4] *= 0.1  # a quarter moved to the empty middle
    bad = precision_recall(samples, real)
    about = f"a quarter of the samples moved between the modes: precision {good.precision:.3f} to {bad.precision:.3f},"
    about += f" recall {good.recall:.3f} to {bad.recall:.3f}"
    return tolerance(abs(bad.precision / good.precision - 0.75), 0.05, about, "|share of precision kept - 3/4|")


def _decibels(seed: int) -> Outcome:
    x0 = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    off = [abs(psnr(x0 + s, x0, (-1.0, 1.0)).value - 20 * math.log10(2 / s)) for s in (0.4, 0.2, 0.01)]
    return tolerance(max(off), 1e-9, "16 pictures in [-1, 1], errors of 0.4, 0.2 and 0.01 everywhere", "dB")


def _shift(seed: int) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    rows, move = torch.randn(500, DIM, generator=generator, dtype=F64), torch.randn(DIM, generator=generator, dtype=F64)
    wanted = float(move.norm()) / DIM**0.5
    found = sliced_wasserstein(rows + move, rows, projections=DIRECTIONS).value
    free = torch.nn.functional.normalize(torch.randn(DIM, DIRECTIONS, generator=generator, dtype=F64), dim=0)
    usual = float((move @ free).square().mean().sqrt())  # a shift moves every projection by itself alone
    errors = abs(found / wanted - 1), abs(usual / wanted - 1)
    about = f"a shift d in {DIM} dimensions gives |d| / {DIM**0.5:g}; 500 rows, {DIRECTIONS} directions"
    return compared(errors, "independent directions", about, unit="relative error")


def _unequal_sizes(seed: int) -> Outcome:
    """Repeating rows changes no distribution, so 300 against 200 rows is 600 against 600."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 1, generator=generator, dtype=F64) for n in (300, 200))
    wanted = float((a.repeat(2, 1).sort(0).values - b.repeat(3, 1).sort(0).values).square().mean().sqrt())
    found = sliced_wasserstein(a, b, projections=1).value
    return tolerance(abs(found / wanted - 1), 1e-12, "300 and 200 rows in one dimension", "relative error")


CLAIMS = (
    Claim("curvature", "the closed form on one Gaussian", _gaussian),
    Claim("curvature", "zero on straight paths", _straight),
    Claim("endpoint", "is the error in closed form on a Gaussian", _scaled),
    Claim("endpoint", "depends less on which few noises are drawn than the Frechet distance", _steady),
    Claim("frechet", "is the closed form on Gaussians", _closed_form),
    Claim("frechet", "keeps its digits where covariances are nearly singular", _nearly_singular),
    Claim("frechet", "is exact where covariances are singular", _singular),
    Claim("frechet", "its floor says what real data score", _floor),
    Claim("precision-recall", "losing a quarter of the modes costs a quarter of the recall", _lost_modes),
    Claim("precision-recall", "a quarter of stray samples costs a quarter of the precision", _strays),
    Claim("psnr", "an error of s everywhere gives 20 log10(range / s)", _decibels),
    Claim("sliced-wasserstein", "frames of directions measure a shift without error", _shift),
    Claim("sliced-wasserstein", "is exact for sets of two sizes", _unequal_sizes),
)  # fmt: skip
