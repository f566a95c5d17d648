"""Claims of fewstep/sampling/pndm.py."""

from __future__ import annotations

from claims.common import VP, Claim, Discrete
from claims.duels import duel, orders

DDPM = Discrete.linear()

CLAIMS = (
    Claim("pndm", "is of order 2", orders(VP(), "pndm")),
    Claim("pndm", "beats ddim at 20 evaluations on DDPM's table with equal steps",
          duel(DDPM, "pndm", "ddim", 20, "uniform")),
    Claim("plms", "is of order 2", orders(VP(), "plms")),
    Claim("plms", "beats ddim at 20 evaluations on DDPM's table with equal steps",
          duel(DDPM, "plms", "ddim", 20, "uniform")),
    Claim("ipndm", "is of order 2 with the weights of 2, 3 and 4 steps", orders(VP(), "ipndm")),
    Claim("ipndm", "beats plms at 10 evaluations on DDPM's table with equal steps",
          duel(DDPM, "ipndm-4", "plms", 10, "uniform")),
)  # fmt: skip
