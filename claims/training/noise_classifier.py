"""Claims of fewstep/training/noise_classifier.py."""

from __future__ import annotations

import math

import torch

from claims.common import VP, Claim, Outcome, compared
from claims.problems import mixture
from fewstep.training.noise_classifier import exact_levels, noise_times, train_noise_classifier


def _posterior(seed: int) -> Outcome:
    model, times = mixture(VP()), noise_times(VP(), 24, 0.02, 1.5)
    classifier = train_noise_classifier(VP(), model.sample(20_000, seed + 2), times, seed=seed)
    level = torch.arange(24).repeat(200)
    ratio = torch.tensor([VP().sigma(t) / VP().alpha(t) for t in times])[level]
    generator = torch.Generator().manual_seed(seed)
    y = model.sample(len(level), seed + 3) + ratio[:, None] * torch.randn(len(level), 2, generator=generator)
    exact = torch.log_softmax(exact_levels(model, times)(y), 1)
    found = torch.log_softmax(classifier(y).double(), 1), torch.full_like(exact, -math.log(24))
    figures = [float((exact.exp() * (exact - other)).sum(1).mean()) for other in found]
    about = (
        "24 levels from sigma/alpha = 1.5 to 0.02, 8-component mixture, vp, 2000 steps of training, 4800 new samples"
    )
    return compared(figures, "all levels equally likely", about, unit="divergence from the exact posterior in nats")


CLAIMS = (Claim("noise-classifier", "has learned the posterior over noise levels", _posterior, quick=False),)
