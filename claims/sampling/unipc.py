"""Claims of fewstep/sampling/unipc.py."""

from __future__ import annotations

from claims.claim import Claim
from claims.problems import digits, duel, exact, orders
from fewstep.processes.vp import VP

CLAIMS = (
    Claim("unipc", "orders 1 to 4 are p + 1, as stated", lambda seed: orders(VP(), "unipc", seed)),
    Claim(
        "unipc",
        "order 2 with its corrector beats dpmpp-2m at 8 evaluations",
        lambda seed: duel(exact(VP(), seed), "unipc-2", "dpmpp-2m", 8, "log-snr"),
    ),
    Claim(
        "unipc",
        "order 2 beats dpmpp-2m at 8 evaluations on the embedded digits",
        lambda seed: duel(digits(seed), "unipc-2", "dpmpp-2m", 8, "log-snr"),
        quick=False,
    ),
)
