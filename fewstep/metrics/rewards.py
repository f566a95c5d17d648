"""Rewards: one number for each sample, higher is better; what particles, searches and fine-tuning aim at.

A reward is a function of samples as data `(B, ...)`. `reward("digit", label=3)` is one by name, which takes what it was
not given from the conditions of a run; any `function(x, **condition) -> (B,)` serves as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.data.captions import detokenize
from fewstep.guidance.reward import Named, Reward, reward
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.metrics.shapes_reward import soft_scores
from fewstep.metrics.shapes_verifier import check

METHODS = (
    Method(
        "ink",
        kind="reward",
        claim="steering to it makes digits bolder",
        use="ink",
        facts={"differentiable": True},
    ),
    Method(
        "symmetry",
        kind="reward",
        claim="steering to it makes pictures more like their mirror images",
        use="symmetry",
        facts={"differentiable": True},
    ),
    Method(
        "likeness",
        kind="reward",
        claim="steering to it brings pictures nearer to a template",
        use="likeness",
        facts={"differentiable": True},
    ),
    Method(
        "digit",
        kind="reward",
        claim="steering to it gives a model of digits without labels the class that is asked for",
        use="digit",
        facts={"differentiable": True},
    ),
    Method(
        "soft-caption",
        kind="reward",
        claim="steering to it gives a model of shapes without captions the pictures that one asks for",
        use="soft_caption",
        facts={"differentiable": True},
    ),
    Method(
        "caption",
        kind="reward",
        claim="1 on what the caption asks for, less by a fifth for each of five attributes that is wrong",
        use="caption",
        facts={"differentiable": False},
    ),
)

__all__ = ["Named", "Reward", "caption", "digit", "ink", "likeness", "reward", "soft_caption", "symmetry"]


def ink(x: Tensor) -> Tensor:
    """Share of ink in pictures `(B, ...)` with pixels from -1 (none) to 1 (full): `(B,)`."""
    return (x.flatten(1).mean(1) + 1) / 2


def symmetry(x: Tensor) -> Tensor:
    """Minus the mean squared difference of pictures `(B, ..., W)` from their mirror images: `(B,)`, at most 0."""
    return -(x - x.flip(-1)).square().flatten(1).mean(1)


def likeness(x: Tensor, template: Tensor) -> Tensor:
    """Minus the mean squared difference of samples `(B, ...)` from `template`, which has no batch axis: `(B,)`."""
    return -(x - template.to(x)).square().flatten(1).mean(1)


def digit(x: Tensor, label: int | Sequence[int] | Tensor | None = None) -> Tensor:
    """Log-probability `(B,)` of a class by the classifier of the 8x8 digits, at most 0; 0 for a label that is no class.

    label: one for all, or B of them; by default the run's condition. `ValueError` without any.
    """
    if label is None:
        raise ValueError("the reward 'digit' needs label=..., as an option or as the run's condition")
    logs = digits_classifier(x.device)(x).log_softmax(1)
    labels = torch.as_tensor(label, device=x.device).reshape(-1, 1)
    return torch.where(labels == torch.arange(logs.shape[1], device=x.device), logs, 0).sum(1)


def soft_caption(x: Tensor, text: str | Sequence[str] | Tensor | None = None) -> Tensor:
    """How near shapes `(B, 3, 32, 32)` are to the nearest picture that a caption allows: `(B,)`, at most 1.

    text: a caption for all, or B of them, as texts or as tokens; by default the run's condition. `ValueError` for
    captions that cannot be read, and without any.
    """
    return soft_scores(x, _captions(x, text, "soft-caption"))


def caption(x: Tensor, text: str | Sequence[str] | Tensor | None = None) -> Tensor:
    """The share `(B,)` of count, colours, shapes, sizes and position that the verifier finds right in shapes
    `(B, 3, 32, 32)`, without a gradient.

    text: a caption for all, or B of them, as texts or as tokens; by default the run's condition. `ValueError` for
    captions that cannot be read, and without any.
    """
    found = check(x, _captions(x, text, "caption"))
    parts = (found.count, found.colour, found.shape, found.size, found.position)
    return torch.stack(parts).to(x.dtype).mean(0)


def _captions(x: Tensor, text: str | Sequence[str] | Tensor | None, name: str) -> list[str]:
    if text is None:
        raise ValueError(f"the reward {name!r} needs text=..., as an option or as the run's condition")
    if isinstance(text, Tensor):
        return detokenize(text)
    return [text] * len(x) if isinstance(text, str) else list(text)
