"""Claims of DDIM inversion."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome, compared
from claims.common import F64, gap, plan
from claims.parts import VP
from claims.problems import mixture
from fewstep.sampling.inversion import inverted


def _twice(seed: int) -> Outcome:
    model, figures = mixture(VP()), []
    noise = torch.randn(256, *(model.shape or ()), generator=torch.Generator().manual_seed(seed), dtype=F64)
    for steps in (80, 40):
        made = plan(model.process, "ddim", steps=steps)
        x = made(model, noise, dtype=F64)
        figures.append(gap(made(model, inverted(model, made, x), dtype=F64), x))
    about = "8-component mixture, VP, 256 samples of ddim, log-SNR times, inverted and drawn again"
    return compared([figures[0], 0.7 * figures[1]], "0.7 times that of half the steps", about, unit="relative error")


CLAIMS = (Claim("inversion", "the way back errs by less than 0.7 with twice the steps", _twice),)
