"""Claims of fewstep/processes/resshift.py."""

from __future__ import annotations

import math

from claims.bridges import law_duel
from claims.common import Claim, Outcome
from claims.duels import identities
from fewstep.processes.resshift import ResShift


def _schedule(seed: int) -> Outcome:
    """sqrt(eta_k) = sqrt(eta_1) b0^beta_k, beta_k = ((k - 1) / (T - 1))^p (T - 1), T = 15, p = 0.3."""
    process, steps, power, worst = ResShift(), 15, 0.3, 0.0
    base = math.exp(math.log(process.eta_max / process.eta_min) / (2 * (steps - 1)))
    for k, t in zip(range(steps, 0, -1), process.grid(steps, power), strict=False):
        root = math.sqrt(process.eta_min) * base ** (((k - 1) / (steps - 1)) ** power * (steps - 1))
        worst = max(worst, abs(process.b(t) - root**2), abs(process.c(t) - process.kappa * root))
    return identities(process, worst, "eta and kappa sqrt(eta) on the paper's chain of 15 steps")


CLAIMS = (
    Claim("resshift", "has the paper's schedule, and its formulas agree with each other", _schedule),
    Claim("resshift", "at 5 steps unipc comes nearer the law of x0 given y than the paper's chain",
          law_duel(ResShift(), "unipc", "shift-ancestral", 5, "log-snr")),
)  # fmt: skip
