"""Claims of fewstep/denoisers/gaussian_mixture.py."""

from __future__ import annotations

import torch

from claims.common import F64, VP, Claim, Noise, Outcome, tolerance
from claims.problems import mixture

TIMES = (0.01, 0.1, 0.3, 0.6, 1.0)


def _score(seed: int) -> Outcome:
    model, process, worst = mixture(VP()), VP(), 0.0
    for t in TIMES:
        x = process.alpha(t) * model.sample(256, seed) + process.sigma(t) * Noise(seed).normal(0, (256, 2), "cpu", F64)
        x.requires_grad_(True)
        time = torch.tensor(t, dtype=F64)
        (wanted,) = torch.autograd.grad(model.log_likelihood(x, time).sum(), x)
        score = model(x.detach(), time).score
        worst = max(worst, float(((score - wanted).norm(dim=1) / wanted.norm(dim=1).mean()).max()))
    about = f"8-component mixture, vp, t in {TIMES}, 256 points each"
    return tolerance(worst, 1e-9, about, "largest relative difference")


def _samples(seed: int) -> Outcome:
    model, n = mixture(VP()), 20_000
    x, vectors = model.sample(n, seed), model.basis.view(2, 8, 2).permute(1, 0, 2)
    second = vectors @ torch.diag_embed(model.variances) @ vectors.mT + model.means[:, :, None] * model.means[:, None]
    statistics = torch.cat((x, (x[:, :, None] * x[:, None]).flatten(1)), 1)
    wanted = torch.cat((model.means.mean(0), second.mean(0).flatten()))
    scores = (statistics.mean(0) - wanted) / (statistics.std(0) / n**0.5)
    about = f"{n} samples of the 8-component mixture, first and second moments"
    return tolerance(float(scores.abs().max()), 4.0, about, "largest difference, in standard errors")


CLAIMS = (
    Claim("gaussian-mixture", "its score is the gradient of its log-likelihood", _score),
    Claim("gaussian-mixture", "its samples have its first and second moments", _samples),
)
