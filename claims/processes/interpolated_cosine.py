"""Claims of fewstep/processes/interpolated_cosine.py."""

from __future__ import annotations

import torch

from claims.common import F64, Claim, Cosine, Outcome, compared
from claims.duels import on_circle
from fewstep.processes.interpolated_cosine import InterpolatedCosine


def _resolution(seed: int) -> Outcome:
    """Averaging pictures of d pixels a side down to 64 divides the noise by d / 64."""
    worst, t = [0.0, 0.0], torch.linspace(0.05, 0.95, 19, dtype=F64)
    for d in (128, 256, 512):
        for i, process in enumerate((InterpolatedCosine(d, 64, 64), Cosine(s=0.0))):
            averaged = (process.alpha(t) / process.sigma(t) * (d / 64)).log()
            worst[i] = max(worst[i], float((averaged - Cosine(s=0.0).log_snr(t)).abs().max()))
    about = "pictures of 128, 256 and 512 pixels a side averaged to 64, 19 times"
    return compared(worst, "the schedule without a shift", about, unit="largest change of log(alpha / sigma)")


CLAIMS = (
    Claim("interpolated-cosine", "its formulas agree with each other", on_circle(InterpolatedCosine())),
    Claim("interpolated-cosine", "keeps the SNR of the averaged picture at every resolution", _resolution),
)
