"""Claims of fewstep/sampling/ddim.py."""

from __future__ import annotations

from claims.claim import Claim
from claims.problems import duel, exact, orders, stochastic_duel
from fewstep.processes.vp import VP

CLAIMS = (
    Claim("ddim", "is of order 1", lambda seed: orders(VP(), "ddim", seed)),
    Claim(
        "ddim",
        "solving the linear part exactly is more accurate than Euler's step in time",
        lambda seed: duel(exact(VP(), seed), "ddim", "euler", 10, "uniform"),
    ),
    Claim(
        "ddim",
        "is nearer to the data's distribution than ancestral sampling in 20 steps",
        lambda seed: stochastic_duel(VP(), "ddim", "ddpm", 20, "uniform", seed),
    ),
    Claim(
        "ddpm",
        "fresh noise forgets an initial noise that was a fifth too wide, which the ODE carries to the end",
        lambda seed: stochastic_duel(VP(), "ddpm", "ddim", 100, "log-snr", seed, spread=1.2),
    ),
)
