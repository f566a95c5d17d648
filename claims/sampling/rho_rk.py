"""Claims of fewstep/sampling/rho_rk.py."""

from __future__ import annotations

from claims.common import EDM, VP, Claim
from claims.duels import duel, orders

CLAIMS = (
    Claim("rho-rk", "orders 2 to 4 are as stated", orders(VP(), "rho-rk")),
    Claim("rho-rk", "order 2 beats Heun in the process's own time at 15 evaluations under VP",
          duel(VP(), "rho-rk-2", "heun", 15, "karras")),
    Claim("rho-rk", "order 3 beats order 2 at 25 evaluations on EDM's process and times",
          duel(EDM(), "rho-rk-3", "rho-rk-2", 25, "karras")),
)  # fmt: skip
