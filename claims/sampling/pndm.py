"""Claims of fewstep/sampling/pndm.py."""

from __future__ import annotations

from claims.claim import Claim
from claims.problems import duel, exact, orders
from fewstep.processes.discrete import Discrete
from fewstep.processes.vp import VP

CLAIMS = (
    Claim("pndm", "is of order 2", lambda seed: orders(VP(), "pndm", seed)),
    Claim(
        "pndm",
        "beats ddim at 20 evaluations on DDPM's table with equal steps",
        lambda seed: duel(exact(Discrete.linear(), seed), "pndm", "ddim", 20, "uniform"),
    ),
    Claim("plms", "is of order 2", lambda seed: orders(VP(), "plms", seed)),
    Claim(
        "plms",
        "beats ddim at 20 evaluations on DDPM's table with equal steps",
        lambda seed: duel(exact(Discrete.linear(), seed), "plms", "ddim", 20, "uniform"),
    ),
)
