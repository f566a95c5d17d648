"""What draws say of the exact posterior: its mean, its covariance, the mass of its modes; and denoised samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from claims.claim import Claim, over_seeds, slow
from claims.common import F64, VP, GaussianMixture, sliced
from claims.posteriors import DRAWS, NUMBERS, Cell, cell, law
from claims.restoration.league import ABOUT, UNSEEN
from fewstep.restoration.joint import Joint

NOISE, NFE, DENOISED = 0.1, 20, 0.3

Figure = Callable[[Tensor, Tensor], float]


def mean_error(x: Tensor, exact: Tensor) -> float:
    """Of the mean of draws `(n, 16)`, in deviations of the exact ones."""
    return float(((x.mean(0) - exact.mean(0)) / exact.std(0)).square().mean().sqrt())


def covariance_error(x: Tensor, exact: Tensor) -> float:
    """Of the covariance of draws, over the exact one, in Frobenius norms."""
    own, other = x.mT.cov(), exact.mT.cov()
    return float((own - other).norm() / other.norm())


@functools.cache
def drawn(method: str, problem: str, nfe: int, seed: int) -> tuple[Cell, Tensor]:
    own = cell(problem, NOISE, seed)
    return own, own.restored(method, nfe, seed)


def figure(what: Figure, method: str, problem: str, nfe: int, seed: int) -> float:
    """The mean over the measurements."""
    own, x = drawn(method, problem, nfe, seed)
    return sum(what(one, exact) for one, exact in zip(x, own.truth, strict=True)) / len(x)


def nearer(
    method: str, sentence: str, what: Figure, against: str, unit: str, theirs: int = NFE, problem: str = "half seen"
) -> Claim:
    def run(seed: int) -> tuple[float, float]:
        return figure(what, method, problem, NFE, seed), figure(what, against, problem, theirs, seed)

    said = against if theirs == NFE else f"{against} at {theirs} evaluations"
    seed = UNSEEN if method == "calibrated" else 0
    return slow(method, sentence, over_seeds(run, said, ABOUT.format(problem, NOISE, NFE), unit=unit), seed=seed)


# One Gaussian, whose posterior has a covariance that every measurement shares.


@functools.cache
def variance_ratio(method: str, seed: int, **options: Any) -> float:
    """How far the total variance of draws is from the exact one, as a share of it."""
    covariance = torch.diag(torch.tensor([1.0, 0.6, 0.3, 0.1]))
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 4), covariance[None], VP())
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    mixing = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=F64))[0]
    a = fs.operators.Matrix((mask[:, None] * mixing)[mask > 0]).fit((4,))
    fs.calibrate(model, model.sample(4000, seed=seed + 1), n=4000, basis="dense")
    y = a.measure(model.sample(1, seed=seed + 2), NOISE, seed=seed)
    exact = float(model.posterior(a, y, NOISE).covariances()[0].trace())
    how: dict[str, Any] = {"n": 4000, "nfe": 50, "seed": seed, "dtype": F64, "batch_size": 4000}
    x = fs.restore(model, y, a, NOISE, method=method, options=options, **how)[0]
    return abs(float(x.var(0).sum()) / exact - 1)


# A noisy sample is a state: what one run, many runs and a wrong level make of it.


@functools.cache
def denoised(runs: int, level: float | None, seed: int) -> tuple[Tensor, Tensor]:
    model, a = law(seed), fs.operators.Identity().fit((NUMBERS,))
    truth = model.sample(DRAWS, seed=seed + 2)
    y = a.measure(truth, DENOISED, seed=seed)
    options = {"runs": runs, "level": level}
    x = fs.restore(model, y, a, DENOISED, method="dmid", options=options, nfe=8 * runs, seed=seed, dtype=F64)
    return x, truth


def denoising(runs: int, level: float | None, seed: int, distance: bool) -> float:
    """The distance of the results from clean samples, or their squared error."""
    x, truth = denoised(runs, level, seed)
    if distance:
        return float(sliced(x, law(seed).sample(DRAWS, seed=seed + 7)))
    return float((x - truth).square().mean())


ONE, EIGHT, WRONG = (1, None), (8, None), (1, 2 * DENOISED)


def denoises(sentence: str, against: str, ours: Any, theirs: Any, distance: bool) -> Claim:
    def run(seed: int) -> tuple[float, float]:
        return denoising(*ours, seed, distance), denoising(*theirs, seed, distance)

    unit = "sliced Wasserstein distance to clean samples" if distance else "mean squared error"
    about = f"mixture of 6 in 16 numbers, noise {DENOISED}, {DRAWS} samples, 8 evaluations a run"
    return slow("dmid", sentence, over_seeds(run, against, about, unit=unit))


# Structured noise: where the samples go.


def modes(seed: int) -> tuple[float, float]:
    """How far the share of draws in the first mode is from the exact one, with the noise's law and without."""
    model = GaussianMixture(torch.ones(2) / 2, torch.tensor([[1.0, 0.5], [-1.0, -0.5]]), 0.1**2, VP())
    line = torch.tensor([[1.0], [-1.0]], dtype=F64)
    wave = GaussianMixture(torch.ones(1), torch.zeros(1, 2), (line @ line.mT * 0.5 + 1e-4 * torch.eye(2))[None], VP())
    both, a = Joint(model, wave), fs.operators.Identity().fit((2,))
    truth, n = model.sample(12, seed=seed + 2), wave.sample(12, seed=seed + 3)
    y = a.measure(truth + n, 0.3, seed=seed)
    how: dict[str, Any] = {"method": "dps", "n": 200, "nfe": 40, "seed": seed, "dtype": F64, "batch_size": 2400}
    known = both.split(fs.restore(both, y, both.operator(a), 0.3, **how).flatten(0, 1))[0].unflatten(0, (12, 200))
    white = fs.restore(model, y, a, float((0.3**2 + n.square().mean()).sqrt()), **how)
    exact = _shares(model, wave, y)
    ours, theirs = (float(((x[..., 0] > 0).double().mean(1) - exact).abs().mean()) for x in (known, white))
    return ours, theirs


def _shares(model: GaussianMixture, wave: GaussianMixture, y: Tensor) -> Tensor:
    """The exact chance of the first mode given y: `w_k N(y; m_k, C + C_n + 0.3^2 I)`."""
    covariance = model.covariances()[0] + wave.covariances()[0] + 0.3**2 * torch.eye(2, dtype=F64)
    law = torch.distributions.MultivariateNormal(model.means.double(), covariance)
    return law.log_prob(y.double()[:, None]).softmax(1)[:, 0]


CLAIMS = (
    nearer("stsl", "its mean is nearer to the posterior's than that of dps", mean_error, "dps",
           "error of the mean in deviations"),
    nearer("stsl", "its covariance is nearer to the posterior's than that of dps", covariance_error, "dps",
           "relative error of the covariance"),
    *(nearer("cdim", f"its mean is no further from the posterior's than that of dps given ten times more, {problem}",
             mean_error, "dps", "error of the mean in deviations", 10 * NFE, problem)
      for problem in ("half seen", "6 projections")),
    nearer("calibrated", "its covariance is nearer to the posterior's than that of pigdm", covariance_error, "pigdm",
           "relative error of the covariance"),
    *(slow("calibrated", f"on a Gaussian it keeps the posterior's variance better than dps{said}",
           over_seeds(lambda seed, own=own: (variance_ratio("calibrated", seed, **own), variance_ratio("dps", seed)),
                      "dps", "Gaussian of 4 numbers, 2 seen, noise 0.1, 4,000 draws, 50 evaluations",
                      unit="error of the total variance, as a share"))
      for said, own in (("", {}), (", with all of the noise (wide 1)", {"wide": 1.0}))),
    denoises("one run is nearer to clean samples than the mean of eight", "the mean of eight runs", ONE, EIGHT, True),
    denoises("a start at the noise's own level has the smaller error", "a start at twice the level", ONE, WRONG, False),
    denoises("a start at the noise's own level is nearer to clean samples", "a start at twice the level", ONE, WRONG,
             True),
    slow("joint", "with the noise's own law the modes have their mass",
         over_seeds(modes, "dps that takes the noise for white",
                    "2 modes in the plane, noise along a line, 12 measurements x 200 draws, 40 evaluations",
                    unit="error of the modes' mass")),
)  # fmt: skip
