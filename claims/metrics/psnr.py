"""Claims of fewstep/metrics/psnr.py."""

from __future__ import annotations

import math

import torch

from claims.claim import Claim, Outcome
from fewstep.metrics.psnr import psnr


def _closed_form(seed: int) -> Outcome:
    x0 = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    off = [abs(psnr(x0 + s, x0, (-1.0, 1.0)).value - 20 * math.log10(2 / s)) for s in (0.4, 0.2, 0.01)]
    return Outcome(
        max(off), 1e-9, "tolerance", "16 pictures in [-1, 1], errors of 0.4, 0.2 and 0.01 everywhere", unit="dB"
    )


CLAIMS = (Claim("psnr", "an error of s everywhere gives 20 log10(range / s)", _closed_form),)
