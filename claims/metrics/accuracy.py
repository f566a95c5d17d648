"""Claims of fewstep/metrics/accuracy.py."""

from __future__ import annotations

import torch

from claims.common import Claim, Outcome, compared, tolerance
from claims.problems import digits
from fewstep.data.digits import load
from fewstep.metrics.accuracy import class_accuracy


def _real(seed: int) -> Outcome:
    found = class_accuracy(*load("validation"))
    return Outcome(found.value, 0.95, "demand", f"{found.n} held-out digits", better="high", unit="accuracy")


def _dealt(seed: int) -> Outcome:
    images, labels = load("validation")
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    found = class_accuracy(images, mixed)
    return tolerance(abs(found.value - 0.1), 0.05, f"{found.n} held-out digits, labels shuffled", "|accuracy - 1/10|")


def _samples(seed: int) -> Outcome:
    on = digits(seed)
    labels = on.condition["label"]
    figures = [class_accuracy(on.reference, label).value for label in (labels, (labels + 1) % 10)]
    about = f"{len(labels)} samples of the embedded digits, 100 evaluations"
    return compared(figures, "the next class's label", about, better="high", unit="accuracy")


CLAIMS = (
    Claim("accuracy", "is near 1 on real digits", _real),
    Claim("accuracy", "is 1/10 on labels dealt at random", _dealt),
    Claim("accuracy", "tells samples of the class asked for from those of another", _samples, quick=False),
)
