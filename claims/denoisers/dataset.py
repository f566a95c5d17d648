"""Claims of fewstep/denoisers/dataset.py."""

from __future__ import annotations

import math

import torch

from claims.common import EDM, F64, VP, Claim, Noise, Outcome, compared, tolerance
from fewstep.data.digits import load
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.hub.models import load as load_model

TIMES = (0.02, 0.2, 0.5, 0.9)


def _brute_force(seed: int) -> Outcome:
    images, labels = (part[:200] for part in load("train"))
    data, process, worst, label = images.double(), VP(), 0.0, torch.arange(8) % 10
    model = DatasetDenoiser(data, process, labels)
    for t in TIMES:
        x = process.alpha(t) * data[:8] + process.sigma(t) * Noise(seed).normal(0, (8, 1, 8, 8), "cpu", F64)
        found = model(x, torch.tensor(t, dtype=F64), label=label).x0
        for i in range(8):
            chosen = [j for j in range(len(data)) if int(labels[j]) == int(label[i])]
            squares = [float((x[i] - process.alpha(t) * data[j]).square().sum()) for j in chosen]
            weights = [math.exp(-(s - min(squares)) / (2 * process.sigma(t) ** 2)) for s in squares]
            mean = sum(w * data[j] for w, j in zip(weights, chosen, strict=True)) / sum(weights)
            worst = max(worst, float((found[i] - mean).abs().max()))
    about = f"200 digits with labels, vp, t in {TIMES}, 8 points each, against sums in Python"
    return tolerance(worst, 1e-9, about, "largest difference")


def _optimal(seed: int) -> Outcome:
    """Nothing denoises the training data better; the embedded network, which generalises, must be above it."""
    images, labels = (part[:256] for part in load("train"))
    process, errors = EDM(), []
    for model in (DatasetDenoiser(load("train")[0], process, load("train")[1]), load_model("digits")):
        total = 0.0
        for t in (0.2, 0.5, 1.0, 2.0):
            x = images + process.sigma(t) * Noise(seed).normal(0, (256, 1, 8, 8))
            with torch.no_grad():
                x0 = model(x, torch.full((256,), t), label=labels).x0
            total += float((x0 - images).square().mean())
        errors.append(total / 4)
    about = "256 training digits with labels, sigma 0.2, 0.5, 1 and 2"
    return compared(errors, "the embedded network", about, unit="mean squared error of x0")


CLAIMS = (
    Claim("dataset", "is the weighted mean over the data, with labels the class's", _brute_force),
    Claim("dataset", "denoises its own data better than a network trained on them", _optimal, quick=False),
)
