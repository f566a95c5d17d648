"""Claims of fewstep/denoisers/experts.py."""

from __future__ import annotations

import torch

from claims.common import ENDPOINT, VP, Claim, GaussianMixture, Outcome, compared, gap, plan
from claims.problems import MIXTURE_SEED, mixture, problem
from fewstep.denoisers.experts import Experts


def _coarse() -> GaussianMixture:
    """One Gaussian with the mixture's mean and covariance: right in the noise, wrong near the data."""
    x = mixture(VP()).sample(20_000, MIXTURE_SEED)
    centred = x - x.mean(0)
    return GaussianMixture(torch.ones(1), x.mean(0)[None], (centred.T @ centred / len(x))[None], VP())


def _routes(seed: int) -> Outcome:
    """The coarse denoiser above t = 0.7 and the exact one below, against the coarse one alone."""
    on, made = problem(VP(), seed), plan(VP(), "dpmpp-3m", 20, "log-snr")
    models = (Experts([mixture(VP()), _coarse()], (0.7,)), _coarse())
    errors = [gap(on.run(made, model), on.reference) for model in models]
    about = "one Gaussian above t = 0.7, the exact denoiser below; dpmpp-3m, 20 evaluations"
    return compared(errors, "the coarse denoiser alone, 20 evaluations", about, unit=ENDPOINT)


CLAIMS = (Claim("experts", "a coarse expert in the noise and an exact one near the data do well together", _routes),)
