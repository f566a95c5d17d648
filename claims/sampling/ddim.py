"""Claims of fewstep/sampling/ddim.py."""

from __future__ import annotations

from claims.common import VP, Claim
from claims.duels import duel, orders, stochastic_duel

CLAIMS = (
    Claim("ddim", "is of order 1", orders(VP(), "ddim")),
    Claim("ddim", "solving the linear part exactly is more accurate than Euler's step in time",
          duel(VP(), "ddim", "euler", 10, "uniform")),
    Claim("ddim", "is nearer to the data's distribution than ancestral sampling in 20 steps",
          stochastic_duel(VP(), "ddim", "ddpm", 20, "uniform")),
    Claim("ddpm", "fresh noise forgets an initial noise that was a fifth too wide, which the ODE carries to the end",
          stochastic_duel(VP(), "ddpm", "ddim", 100, "log-snr", spread=1.2)),
)  # fmt: skip
