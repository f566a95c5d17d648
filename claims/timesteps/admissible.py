"""Claims of fewstep/timesteps/admissible.py."""

from __future__ import annotations

import math

from claims.common import EDM, Claim, Outcome, tolerance
from claims.duels import rules
from fewstep.timesteps.admissible import admissible_step


def _limit(seed: int) -> Outcome:
    """(1 - beta)^n against its limit nu^(-1/eta)."""
    n, errors = 1_000_000, []
    for eta, nu in ((0.05, 2.0), (0.1, 2.0), (0.3, 1.5)):
        errors.append(abs(n * math.log1p(-admissible_step(n, eta, nu)) / (-math.log(nu) / eta) - 1))
    return tolerance(max(errors), 1e-4, f"three pairs of eta and nu, {n} steps", "relative error")


CLAIMS = (
    Claim("admissible", "many steps fall by nu^(1/eta), the theorem's limit", _limit),
    *(Claim("admissible", f"suits {solver} better than equal steps over the whole range, at 6 evaluations",
            rules(EDM(), "admissible", "log-snr", solver, 6))
      for solver in ("ddim", "gradient-estimation")),
)  # fmt: skip
