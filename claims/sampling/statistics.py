"""Claims of fewstep/sampling/statistics.py."""

from __future__ import annotations

import torch

from claims.common import F64, VP, Claim, GaussianMixture, Outcome, tolerance
from fewstep.sampling.statistics import estimate_statistics


def _linear_part(seed: int) -> Outcome:
    variances = torch.tensor([0.02, 0.3, 1.5], dtype=F64)
    model = GaussianMixture(torch.ones(1), torch.tensor([[0.5, -0.2, 0.0]], dtype=F64), variances[None], VP())
    found = estimate_statistics(model, model.sample(256, seed + 1), n=64, seed=seed)
    exact = torch.sigmoid(-2 * found.log_snr[:, None] - variances.log())
    about = "anisotropic Gaussian of 3 coordinates, vp, 64 samples at 120 points; l = sigma^2 / (alpha^2 c + sigma^2)"
    return tolerance(float((found.l - exact).abs().max()), 0.01, about, "largest error of l")


CLAIMS = (Claim("model-statistics", "finds the linear part of a Gaussian from 64 samples", _linear_part, quick=False),)
