"""Claims of fewstep/guidance/known.py."""

from __future__ import annotations

import torch

from claims.common import F64, VP, Claim, GaussianMixture, Outcome, compared, sample
from fewstep.data.digits import load as load_digits
from fewstep.guidance.known import Known
from fewstep.hub.models import load
from fewstep.metrics.accuracy import class_accuracy

N, STEPS = 2000, 40
DIGITS, DIGIT_STEPS = 120, 10
AGAINST = "pasting at the end"


def _conditional(seed: int) -> Outcome:
    """Error of the drawn half's mean against the exact conditional mean, over the conditional standard deviation."""
    place, known = torch.arange(6, dtype=F64), torch.tensor([0.8, -0.2, 0.6], dtype=F64)
    covariance = 0.25 * torch.exp(-(place[:, None] - place).abs() / 2)
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 6), covariance[None], VP())
    gain = covariance[3:, :3] @ torch.linalg.inv(covariance[:3, :3])
    mean, std = gain @ known, (covariance[3:, 3:] - gain @ covariance[:3, 3:]).diagonal().sqrt()
    picture, mask = torch.cat([known, torch.zeros(3, dtype=F64)]), torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=F64)
    errors = []
    for made in (Known(model, picture, mask), model):
        x = sample(made, N, steps=STEPS, solver="ddpm", seed=seed, dtype=F64)
        errors.append(float(((x[:, 3:].mean(0) - mean) / std).square().mean().sqrt()))
    about = f"six correlated Gaussians, three known, {N} samples, {STEPS} steps of ddpm"
    unit = "error of the mean of the others, in their exact conditional standard deviations"
    return compared(errors, AGAINST, about, unit=unit)


def _digits(seed: int) -> Outcome:
    """Class accuracy of digits whose upper half is known, completed without a label."""
    model, mask = load("digits"), torch.zeros(8, 8)
    images, labels = (part[:DIGITS] for part in load_digits("validation"))
    mask[:4] = 1
    free, ours = (
        sample(made, DIGITS, steps=DIGIT_STEPS, solver="ddpm", seed=seed)
        for made in (model, Known(model, images, mask))
    )
    figures = [class_accuracy(x, labels).value for x in (ours, torch.where(mask == 1, images, free))]
    about = f"{DIGITS} held-out digits, upper half known, {DIGIT_STEPS} steps of ddpm, no label"
    return compared(figures, AGAINST, about, "high", "class accuracy")


CLAIMS = (
    Claim("known", "the rest is drawn to fit what is known", _conditional, quick=False),
    Claim("known", "digits completed from their upper half are the right ones more often", _digits, quick=False),
)
