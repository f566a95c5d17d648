"""How many conditional samples belong to the class they were drawn for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.metrics.common import Result, check_samples

METHODS = (
    Method(
        "accuracy",
        claim="near 1 on real digits, 1/10 on random labels",
        use="class_accuracy",
        facts={"needs": ("label",), "of": "digits", "better": "high"},
    ),
)


@dataclass(frozen=True)
class Accuracy(Result):
    """`value`: share of samples, in [0, 1], to which the classifier assigns the label they were drawn for.

    `error` is its standard error, sqrt(p (1 - p) / n).
    """

    error: float


def correct(
    samples: Tensor,
    labels: Tensor | int,
    classifier: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Whether each of `samples` (N, *shape) is of its class by a classifier (B, *shape) -> logits (B, classes): (N,).

    `labels` is (N,) integers in [0, classes) or one for all. The classifier is that of the 8x8 digits if none
    is given; switching off its dropout and the like is up to the caller. Raises ValueError for samples
    that are not finite, fewer than two, labels that do not fit, and logits of another shape.
    """
    samples = check_samples(samples, "samples")
    n = len(samples)
    labels = torch.as_tensor(labels)
    integer = not labels.is_floating_point() and labels.dtype != torch.bool
    if not integer or labels.shape not in ((), (n,)):
        raise ValueError(f"labels must be an integer or ({n},) integers, not {tuple(labels.shape)} of {labels.dtype}")
    if classifier is None:
        from fewstep.metrics.digits_classifier import digits_classifier

        classifier = digits_classifier(samples.device)
    with torch.no_grad():
        logits = torch.cat([classifier(part) for part in samples.split(1024)])
    if logits.ndim != 2 or len(logits) != n:
        raise ValueError(f"the classifier must give ({n}, classes) for {n} samples, not {tuple(logits.shape)}")
    classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), not in [{int(labels.min())}, {int(labels.max())}]")
    return logits.argmax(1).cpu() == labels.cpu()


def class_accuracy(
    samples: Tensor,
    labels: Tensor | int,
    classifier: Callable[[Tensor], Tensor] | None = None,
) -> Accuracy:
    """The share of samples that are `correct`; arguments and errors are those of `correct`."""
    right = correct(samples, labels, classifier)
    return accuracy_of(int(right.sum()), len(right))


def accuracy_of(right: int, n: int) -> Accuracy:
    """The accuracy of n samples of which so many are right."""
    share = right / n
    return Accuracy(share, n, (share * (1 - share) / n) ** 0.5)
