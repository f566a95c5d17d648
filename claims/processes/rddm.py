"""Claims of fewstep/processes/rddm.py."""

from __future__ import annotations

from itertools import pairwise

import torch

from claims.bridges import largest, law_duel
from claims.common import F64, VP, Claim, Outcome, tolerance
from claims.duels import identities
from claims.problems import clock
from fewstep.processes.rddm import RDDM, Residual


def _rates(seed: int) -> Outcome:
    process = RDDM()
    t = clock(process)
    errors = [process.b(t) - (2 * t - t**2), process.c(t) ** 2 - t**2]
    return identities(process, largest(errors), "integrals of the rates 2 (1 - t) and 2 t")


def _trajectory(seed: int) -> Outcome:
    """RDDM's step in A = 1 - alpha, B = sigma, y = 0, against DDIM's, for one network that is not even sensible."""
    process, base, worst = Residual(VP()), VP(), 0.0
    ddim = ours = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed), dtype=F64)
    for t, s in pairwise(torch.linspace(1, 0, 21, dtype=F64)):
        eps = torch.tanh(ours)
        ddim = base.alpha(s) * (ddim - base.sigma(t) * eps) / base.alpha(t) + base.sigma(s) * eps
        x0 = (ours - process.c(t) * eps) / process.a(t)
        ours = ours + (process.b(t) - process.b(s)) * x0 - (process.c(t) - process.c(s)) * eps
        worst = max(worst, float((ours - ddim).abs().max() / ddim.abs().max()))
    return tolerance(worst, 1e-6, "RDDM's steps with DDPM's coefficients against DDIM's, 20 steps, 64 trajectories")


CLAIMS = (
    Claim("rddm", "is the integral of its rates, and its formulas agree", _rates),
    Claim("rddm", "unipc comes nearer the law of x0 given y than the paper's sampler at 10 evaluations",
          law_duel(RDDM(), "unipc", "ddim", 10, "log-snr")),
    Claim("residual", "with DDPM's coefficients RDDM takes DDIM's trajectory", _trajectory),
)  # fmt: skip
