"""Claims of fewstep/denoisers/dataset.py."""

from __future__ import annotations

import math

import torch

from claims.claim import Claim, Outcome
from claims.problems import F64
from fewstep.core.noise import Noise
from fewstep.data.digits import load
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

TIMES = (0.02, 0.2, 0.5, 0.9)


def _brute_force(seed: int) -> Outcome:
    images, labels = (part[:200] for part in load("train"))
    data, process, worst = images.double(), VP(), 0.0
    model = DatasetDenoiser(data, process, labels)
    label = torch.arange(8) % 10
    for t in TIMES:
        x = process.alpha(t) * data[:8] + process.sigma(t) * Noise(seed).normal(0, (8, 1, 8, 8), "cpu", F64)
        found = model(x, torch.tensor(t, dtype=F64), label=label).x0
        for i in range(8):
            chosen = [j for j in range(len(data)) if int(labels[j]) == int(label[i])]
            squares = [float((x[i] - process.alpha(t) * data[j]).square().sum()) for j in chosen]
            nearest = min(squares)
            weights = [math.exp(-(s - nearest) / (2 * process.sigma(t) ** 2)) for s in squares]
            mean = sum(w * data[j] for w, j in zip(weights, chosen, strict=True)) / sum(weights)
            worst = max(worst, float((found[i] - mean).abs().max()))
    return Outcome(
        worst,
        1e-9,
        "tolerance",
        f"200 digits with labels, vp, t in {TIMES}, 8 points each, against sums in Python",
        unit="largest difference",
    )


def _optimal(seed: int) -> Outcome:
    """Nothing denoises the training data better; the embedded network, which generalises, must be above it."""
    from fewstep.hub.models import load as load_model

    network = load_model("digits")
    images, labels = (part[:256] for part in load("train"))
    exact, process = DatasetDenoiser(*load("train")[:1], EDM(), load("train")[1]), EDM()
    errors = []
    for model in (exact, network):
        total = 0.0
        for t in (0.2, 0.5, 1.0, 2.0):
            x = images + process.sigma(t) * Noise(seed).normal(0, (256, 1, 8, 8))
            with torch.no_grad():
                x0 = model(x, torch.full((256,), t), label=labels).x0
            total += float((x0 - images).square().mean())
        errors.append(total / 4)
    return Outcome(
        errors[0],
        errors[1],
        "the embedded network",
        "256 training digits with labels, sigma 0.2, 0.5, 1 and 2",
        unit="mean squared error of x0",
    )


CLAIMS = (
    Claim("dataset", "is the weighted mean over the data, with labels the class's", _brute_force),
    Claim("dataset", "denoises its own data better than a network trained on them", _optimal, quick=False),
)
