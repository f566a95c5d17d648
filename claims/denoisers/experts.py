"""Claims of fewstep/denoisers/experts.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.problems import MIXTURE_SEED, exact, mixture
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def _coarse() -> GaussianMixture:
    """One Gaussian with the mixture's mean and covariance: right in the noise, wrong near the data."""
    x = mixture(VP()).sample(20_000, MIXTURE_SEED)
    centred = x - x.mean(0)
    return GaussianMixture(torch.ones(1), x.mean(0)[None], (centred.T @ centred / len(x))[None], VP())


def _routes(seed: int) -> Outcome:
    """The coarse denoiser above t = 0.7 and the exact one below, against the coarse one alone."""
    problem, made = exact(VP(), seed), plan(VP(), "dpmpp-3m", 20, "log-snr")

    def error(model: object) -> float:
        x = made(model, problem.noise, dtype=problem.noise.dtype)
        return float((x - problem.reference).norm() / problem.reference.norm())

    return Outcome(
        error(Experts([mixture(VP()), _coarse()], (0.7,))),
        error(_coarse()),
        "the coarse denoiser alone, 20 evaluations",
        "one Gaussian above t = 0.7, the exact denoiser below; dpmpp-3m, 20 evaluations",
        unit="relative end point error",
    )


CLAIMS = (Claim("experts", "a coarse expert in the noise and an exact one near the data do well together", _routes),)
