"""Claims of fewstep/sampling/dpm_solver.py."""

from __future__ import annotations

from claims.claim import Claim
from claims.problems import duel, exact, orders
from fewstep.processes.vp import VP

CLAIMS = (
    Claim("dpm-solver", "orders 1 to 3 are as stated", lambda seed: orders(VP(), "dpm-solver", seed)),
    Claim(
        "dpm-solver",
        "order 2 beats ddim at 12 evaluations",
        lambda seed: duel(exact(VP(), seed), "dpm-solver-2", "ddim", 12, "log-snr"),
    ),
    Claim(
        "dpm-solver",
        "order 3 beats ddim at 12 evaluations",
        lambda seed: duel(exact(VP(), seed), "dpm-solver-3", "ddim", 12, "log-snr"),
    ),
    Claim("dpm-fast", "is of order 2", lambda seed: orders(VP(), "dpm-fast", seed)),
    Claim(
        "dpm-fast",
        "beats order 2 throughout at 12 evaluations",
        lambda seed: duel(exact(VP(), seed), "dpm-fast", "dpm-solver-2", 12, "log-snr"),
    ),
)
