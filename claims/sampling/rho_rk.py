"""Claims of fewstep/sampling/rho_rk.py."""

from __future__ import annotations

from claims.claim import Claim
from claims.problems import duel, exact, orders
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

CLAIMS = (
    Claim("rho-rk", "orders 2 to 4 are as stated", lambda seed: orders(VP(), "rho-rk", seed)),
    Claim(
        "rho-rk",
        "order 2 beats Heun in the process's own time at 15 evaluations under VP",
        lambda seed: duel(exact(VP(), seed), "rho-rk-2", "heun", 15, "karras"),
    ),
    Claim(
        "rho-rk",
        "order 3 beats order 2 at 25 evaluations on EDM's process and times",
        lambda seed: duel(exact(EDM(), seed), "rho-rk-3", "rho-rk-2", 25, "karras"),
    ),
)
