"""Structural similarity of restored pictures and their originals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.metrics.common import Result, check_same_kind, check_same_shape, check_samples

METHODS = (
    Method(
        "ssim",
        paper="Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004)",
        claim="1 for the original, whatever its contrast; blind to a constant that noise is not",
        use="ssim",
        facts={"needs": ("pairs",), "better": "high"},
    ),
)

WINDOW, WIDTH = 11, 1.5
K1, K2 = 0.01, 0.03


@dataclass(frozen=True)
class SSIM(Result):
    """`value`: the mean over pixels, channels and samples, at most 1."""


def ssim(samples: Tensor, originals: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> SSIM:
    """SSIM of pictures `(N, C, H, W)` against their originals, in float64.

    With a Gaussian window of 11 pixels and a deviation of 1.5, or the largest odd one that fits. Raises ValueError for
    what is no picture, values that are not finite, shapes or counts that differ, and an empty range.
    """
    samples, originals = check_samples(samples, "samples", 1), check_samples(originals, "originals", 1)
    check_same_shape(samples, originals, "samples", "originals")
    check_same_kind(samples, originals, "samples", "originals")
    if samples.ndim != 4 or len(samples) != len(originals):
        raise ValueError(f"ssim compares pairs of pictures (N, C, H, W), got {tuple(samples.shape)}")
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must be (low, high) with low < high, got {value_range}")
    a, b = (part.to("cpu").double() for part in (samples, originals))
    c1, c2 = (K1 * (high - low)) ** 2, (K2 * (high - low)) ** 2
    size = min(WINDOW, *(n - 1 + n % 2 for n in a.shape[2:]))
    places = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-(places**2) / (2 * WIDTH**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(a.shape[1], 1, size, size)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=x.shape[1])

    a, b = a - low, b - low
    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    value = (2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return SSIM(float(value.mean()), len(a))
