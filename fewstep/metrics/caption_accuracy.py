"""How often pictures of captioned shapes show what their captions ask for, as the exact verifier reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.metrics.common import Result, check_samples

METHODS = (
    Method(
        "captions",
        claim="1 on pictures of what their captions ask for, near 0 on pictures of other captions",
        use="caption_accuracy",
        facts={"needs": ("text",), "of": "shapes", "better": "high"},
    ),
)


@dataclass(frozen=True)
class CaptionAccuracy(Result):
    """`value`: share of pictures, in [0, 1], that show everything asked for; then the shares by attribute.

    What a caption leaves open counts as right. `error` is the standard error of `value`, sqrt(p (1 - p) / n).
    """

    count: float
    colour: float
    shape: float
    size: float
    position: float
    error: float


PARTS = ("full", "count", "colour", "shape", "size", "position")  # of what a caption asks for


def caption_accuracy(samples: Tensor, captions: Sequence[str], batch: int = 500) -> CaptionAccuracy:
    """Accuracy of pictures (N, 3, 32, 32) in [-1, 1], one caption each, by `fewstep.metrics.shapes_verifier.check`.

    Raises ValueError for other shapes, values that are not finite, and captions that cannot be read.
    """
    return caption_accuracy_of(right_parts(samples, captions, batch), len(samples))


def right_parts(samples: Tensor, captions: Sequence[str], batch: int = 500) -> dict[str, int]:
    """How many pictures show each part of what was asked for, and how many all of it, "full"."""
    from fewstep.metrics.shapes_verifier import check

    samples = check_samples(samples, "samples")
    if len(captions) != len(samples):
        raise ValueError(f"{len(samples)} pictures need as many captions, got {len(captions)}")
    starts = range(0, len(samples), batch)
    found = [check(samples[at : at + batch].cpu(), captions[at : at + batch]) for at in starts]
    return {name: int(torch.cat([getattr(part, name) for part in found]).sum()) for name in PARTS}


def caption_accuracy_of(right: Mapping[str, int], n: int) -> CaptionAccuracy:
    """The figures of n pictures of which so many are right in each part."""
    share = {name: right[name] / n for name in PARTS}
    value = share.pop("full")
    return CaptionAccuracy(value, n, **share, error=(value * (1 - value) / n) ** 0.5)
