"""Peak signal-to-noise ratio: how close restored pictures are to their originals, in decibels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fewstep.core.methods import Method
from fewstep.metrics.common import Result, check_same_kind, check_same_shape, check_samples

METHODS = (
    Method(
        "psnr",
        claim="20 log10(range / s) for an error of s everywhere; half the error is 6.02 dB more",
        use="psnr",
        facts={"needs": ("pairs",), "better": "high"},
    ),
)


@dataclass(frozen=True)
class PSNR(Result):
    """`value`: that of the mean squared error over all samples, in dB; infinite where they are the originals.

    `median` is that of the samples' own ratios: a few that failed do not move it.
    """

    median: float


def psnr(samples: Tensor, originals: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> PSNR:
    """10 log10((high - low)^2 / MSE) of `samples` (N, *shape) against their `originals`, row by row, in float64.

    Raises ValueError for values that are not finite, no samples, different shapes or counts, and an empty range.
    """
    samples, originals = check_samples(samples, "samples", 1), check_samples(originals, "originals", 1)
    check_same_shape(samples, originals, "samples", "originals")
    check_same_kind(samples, originals, "samples", "originals")
    if len(samples) != len(originals):
        raise ValueError(f"there are {len(samples)} samples but {len(originals)} originals: they must be pairs")
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must be (low, high) with low < high, got {value_range}")
    a, b = (part.to("cpu").double().flatten(1) for part in (samples, originals))
    errors = (a - b).square().mean(1)
    return PSNR(_decibels(float(errors.mean()), high - low), len(a), _decibels(float(errors.quantile(0.5)), high - low))


def _decibels(error: float, peak: float) -> float:
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf
