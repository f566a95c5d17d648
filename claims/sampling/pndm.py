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
    Claim("ipndm", "is of order 2 with the weights of 2, 3 and 4 steps", lambda seed: orders(VP(), "ipndm", seed)),
    Claim(
        "ipndm",
        "beats plms at 10 evaluations on DDPM's table with equal steps",
        lambda seed: duel(exact(Discrete.linear(), seed), "ipndm-4", "plms", 10, "uniform"),
    ),
)
