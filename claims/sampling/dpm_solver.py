"""Claims of fewstep/sampling/dpm_solver.py."""

from __future__ import annotations

from claims.common import VP, Claim
from claims.duels import duel, orders

CLAIMS = (
    Claim("dpm-solver", "orders 1 to 3 are as stated", orders(VP(), "dpm-solver")),
    Claim("dpm-solver", "order 2 beats ddim at 12 evaluations", duel(VP(), "dpm-solver-2", "ddim", 12, "log-snr")),
    Claim("dpm-solver", "order 3 beats ddim at 12 evaluations", duel(VP(), "dpm-solver-3", "ddim", 12, "log-snr")),
    Claim("dpm-fast", "is of order 2", orders(VP(), "dpm-fast")),
    Claim("dpm-fast", "beats order 2 throughout at 12 evaluations",
          duel(VP(), "dpm-fast", "dpm-solver-2", 12, "log-snr")),
)  # fmt: skip
