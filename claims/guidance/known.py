"""Claims of fewstep/guidance/known.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from fewstep.data.digits import load as load_digits
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.known import Known
from fewstep.hub.models import load
from fewstep.metrics.accuracy import class_accuracy
from fewstep.processes.vp import VP
from fewstep.sampling.sample import sample

N, STEPS = 2000, 40
DIGITS, DIGIT_STEPS = 120, 10
F64 = torch.float64


@functools.cache
def _gaussian() -> tuple[Tensor, Tensor]:
    """A covariance of six correlated numbers, and the values of the first three that are known."""
    place = torch.arange(6, dtype=F64)
    return 0.25 * torch.exp(-(place[:, None] - place).abs() / 2), torch.tensor([0.8, -0.2, 0.6], dtype=F64)


def _conditional(seed: int) -> Outcome:
    """Error of the drawn half's mean against the exact conditional mean, over the conditional standard deviation."""
    covariance, known = _gaussian()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 6), covariance[None], VP())
    gain = covariance[3:, :3] @ torch.linalg.inv(covariance[:3, :3])
    mean = gain @ known
    std = (covariance[3:, 3:] - gain @ covariance[:3, 3:]).diagonal().sqrt()
    picture = torch.cat([known, torch.zeros(3, dtype=F64)])
    mask = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=F64)
    ours = sample(Known(model, picture, mask), N, steps=STEPS, solver="ddpm", seed=seed, dtype=F64)
    theirs = sample(model, N, steps=STEPS, solver="ddpm", seed=seed, dtype=F64)

    def error(x: Tensor) -> float:
        return float(((x[:, 3:].mean(0) - mean) / std).square().mean().sqrt())

    return Outcome(
        error(ours),
        error(theirs),
        "pasting at the end",
        f"six correlated Gaussians, three known, {N} samples, {STEPS} steps of ddpm",
        unit="error of the mean of the others, in their exact conditional standard deviations",
    )


def _digits(seed: int) -> Outcome:
    """Class accuracy of digits whose upper half is known, completed without a label."""
    model = load("digits")
    images, labels = load_digits("validation")
    images, labels = images[:DIGITS], labels[:DIGITS]
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    free = sample(model, DIGITS, steps=DIGIT_STEPS, solver="ddpm", seed=seed)
    ours = sample(Known(model, images, mask), DIGITS, steps=DIGIT_STEPS, solver="ddpm", seed=seed)
    pasted = torch.where(mask == 1, images, free)
    return Outcome(
        class_accuracy(ours, labels).value,
        class_accuracy(pasted, labels).value,
        "pasting at the end",
        f"{DIGITS} held-out digits, upper half known, {DIGIT_STEPS} steps of ddpm, no label",
        "high",
        "class accuracy",
    )


CLAIMS = (
    Claim("known", "the rest is drawn to fit what is known", _conditional, quick=False),
    Claim("known", "digits completed from their upper half are the right ones more often", _digits, quick=False),
)
